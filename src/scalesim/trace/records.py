"""Validation of values from untrusted files: JSON lines, JSON documents, rows of a database.

Each kind of value has one rule in all formats. A value that breaks the rule raises ``TraceError``
with its place, the value (cut short) and the rule. Nothing here raises another error, takes more
memory than a few times the file, or nests deeper than ``strict_json`` allows.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scalesim.checks import shown
from scalesim.core import AgentId
from scalesim.errors import TraceError
from scalesim.regular_file import open_regular
from scalesim.strict_json import decode_utf8, parse_json

MAX_BYTES = 1 << 30
"""The most bytes of a JSON document that is read as a whole."""
MAX_LINE_BYTES = 1 << 26
MAX_TEXT = 1 << 16
"""The most characters of a name: of an agent, a template, an adapter, a content."""
MAX_NUMBER = 1 << 53
"""Above this, a float no longer tells one tick from the next."""
_INT64 = 1 << 63


# -- whole files ----------------------------------------------------------------------------------


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of each line of ``path`` that is not blank. Raises ``TraceError``."""
    with open_regular(path, TraceError) as file:
        yield from lines_of(file.readline, path, MAX_LINE_BYTES)


def lines_of(
    readline: Callable[[int], bytes], path: Path, max_bytes: int
) -> Iterator[tuple[str, str]]:
    """``lines`` for an open file's ``readline``, with at most ``max_bytes`` bytes per line."""
    number = 0
    while raw := readline(max_bytes + 1):
        number += 1
        where = f"{path} line {number}"
        if len(raw) > max_bytes:
            raise TraceError(f"{where} is longer than the {max_bytes >> 20} MiB it may be")
        if text := _text_of(raw, where).strip():
            yield where, text


def document(path: Path) -> Any:
    """The one JSON document in ``path``. Raises ``TraceError``."""
    with open_regular(path, TraceError) as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise TraceError(
            f"{path} is one JSON document of more than {MAX_BYTES >> 30} GiB; write one record a "
            "line, which is read line by line"
        )
    return parsed(_text_of(raw, str(path)), str(path))


def _text_of(raw: bytes, where: str) -> str:
    return decode_utf8(raw.removeprefix(codecs.BOM_UTF8), where, TraceError)


def parsed(text: str, where: str) -> Any:
    """``text`` parsed as JSON, with the limits of ``strict_json``."""
    return parse_json(text, where, TraceError)


# -- values ---------------------------------------------------------------------------------------


def record(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TraceError(f"{where} is no JSON object but {shown(value)}")
    return value


def number(value: Any, what: str) -> float:
    """``value`` as a finite number of at most ``MAX_NUMBER``, either sign."""
    is_number = not isinstance(value, bool) and isinstance(value, (int, float))
    if is_number and -MAX_NUMBER <= value <= MAX_NUMBER:  # NaN is not
        return float(value)
    raise TraceError(f"{what} is {shown(value)}; it must be a finite number, to 2^53 from 0")


def number_of(value: Any, what: str) -> float:
    """``number``, also for a number given as text."""
    if isinstance(value, str) and len(value) < 64:
        try:
            return number(float(value), what)
        except ValueError as cause:
            if isinstance(cause, TraceError):
                raise
    return number(value, what)


def whole(value: Any, what: str, minimum: int = 0, maximum: int = MAX_NUMBER) -> int:
    """``value`` as a whole number from ``minimum`` to ``maximum``."""
    is_whole = not isinstance(value, bool) and isinstance(value, int)
    if not is_whole or not minimum <= value <= maximum:
        rule = (
            f"at least {minimum}"
            if value is None or maximum == MAX_NUMBER
            else f"{minimum} to {maximum}"
        )
        raise TraceError(f"{what} {shown(value)} must be a whole number, {rule}")
    return int(value)


def name(value: Any, what: str) -> str:
    """``value`` as text of at most ``MAX_TEXT`` characters that can be encoded again."""
    if not isinstance(value, str) or len(value) > MAX_TEXT or not _is_unicode(value):
        raise TraceError(
            f"{what} {shown(value)} must be a string of at most {MAX_TEXT} characters, without "
            "lone surrogates"
        )
    return value


def name_or_number(value: Any, what: str) -> str | int:
    """A name, or a whole number of 64 bits."""
    if isinstance(value, str):
        return name(value, what)
    if isinstance(value, bool) or not isinstance(value, int) or not -_INT64 <= value < _INT64:
        raise TraceError(f"{what} {shown(value)} must be a string or a whole number of 64 bits")
    return value


def agent(value: Any, where: str) -> AgentId:
    return name_or_number(value, f"{where}: agent")


def _is_unicode(text: str) -> bool:
    return text.isascii() or re.search("[\ud800-\udfff]", text) is None
