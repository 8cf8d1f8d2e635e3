"""Lines of external trace files, read one by one, with typed access to their fields.

A wrong value raises ``TraceError`` with the line, the field, the value and the rule.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from scalesim.checks import shown
from scalesim.core import AgentId
from scalesim.errors import ScaleSimError, TraceError
from scalesim.regular_file import open_regular
from scalesim.strict_json import parse_json
from scalesim.trace.records import lines_of
from scalesim.trace.trace import TraceCall, TraceTick

MAX_TOKENS = 1 << 24
MAX_LINE = 16 << 20
MAX_TURNS = 2000  # of a session whose prompts repeat all earlier text: their sum grows as a square
MAX_NAME = 500
MAX_SECONDS = 1e11  # three thousand years
_GZIP = b"\x1f\x8b"


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of ``path`` that are not blank, each after its place (the file and the line's
    number) for messages. A gzipped file is unpacked. Raises ``TraceError``."""
    try:
        with open_regular(path, TraceError) as raw:
            is_packed = raw.read(2) == _GZIP
            raw.seek(0)
            file = gzip.GzipFile(fileobj=raw) if is_packed else raw
            yield from lines_of(file.readline, path, MAX_LINE)
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"{path} cannot be read: {error}") from None


@dataclass(frozen=True, slots=True)
class Row:
    """The fields of a JSON object, such as a line; a wrong value raises ``error``.

    A JSON ``null`` counts as absent, which is what writers of logs mean by it. In a model's config
    ``null`` is a value, so configs have a reader of their own (``model.checkpoint.fields``).
    """

    where: str
    fields: Mapping[str, Any]
    error: type[ScaleSimError] = TraceError

    @classmethod
    def parsed(cls, text: str, where: str, error: type[ScaleSimError] = TraceError) -> Row:
        """Parse a JSON object."""
        found = parse_json(text, where, error)
        if not isinstance(found, dict):
            raise error(f"{where} is {shown(found)}; it must be a JSON object")
        return cls(where, found, error)

    def wrong(self, name: str, rule: str) -> ScaleSimError:
        value = shown(self.fields.get(name))
        return self.error(f"{self.where}: {name} is {value}; it must be {rule}")

    def has(self, name: str) -> bool:
        return self.fields.get(name) is not None

    def either(self, *names: str) -> str:
        """The first of ``names`` that is there, else the first."""
        return next((name for name in names if self.has(name)), names[0])

    def whole(self, name: str, minimum: int = 0, maximum: int = MAX_TOKENS) -> int:
        value: Any = self.fields.get(name)
        if not _is_whole(value, minimum, maximum):
            raise self.wrong(name, f"a whole number, {minimum} to {maximum}")
        return int(value)

    def number(self, name: str, maximum: float = math.inf, *, above: bool = False) -> float:
        """A number from 0, or with ``above`` greater than 0, to ``maximum``."""
        value = self.fields.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (
            0 <= value <= maximum and (value or not above)
        ):  # fmt: skip
            raise self.wrong(
                name, f"a number {'above 0, up' if above else 'from 0'} to {maximum:g}"
            )
        return float(value)

    def seconds(self, name: str) -> float:
        """A time in milliseconds, converted to seconds."""
        return self.number(name, MAX_SECONDS * 1000) / 1000

    def name(self, name: str) -> str:
        value = self.fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value) if abs(value) < 1 << 64 else None
        if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME or not _encodes(value):
            raise self.wrong(name, f"a name of 1 to {MAX_NAME} characters")
        return value

    def items(self, name: str) -> list[Any]:
        value = self.fields.get(name)
        if not isinstance(value, list):
            raise self.wrong(name, "a list")
        return value

    def wholes(self, name: str, minimum: int = 0, maximum: int = MAX_TOKENS) -> list[int]:
        """A list of whole numbers."""
        found = self.items(name)
        if not all(_is_whole(value, minimum, maximum) for value in found):
            raise self.wrong(name, f"a list of whole numbers, {minimum} to {maximum}")
        return found

    def rows(self, name: str) -> list[Row]:
        """A list of objects; empty if it is absent."""
        found = self.items(name) if self.has(name) else []
        if not all(isinstance(item, dict) for item in found):
            raise self.wrong(name, "a list of objects")
        return [Row(f"{self.where}: {name}", item, self.error) for item in found]

    def row(self, name: str) -> Row:
        value = self.fields.get(name)
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Row(f"{self.where}: {name}", value, self.error)


def rows(path: Path) -> Iterator[Row]:
    """The lines of ``path`` as objects. Raises ``TraceError``."""
    return (Row.parsed(text, where) for where, text in lines(path))


def _is_whole(value: Any, minimum: int, maximum: int) -> bool:
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return is_int and minimum <= value <= maximum


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Timed(NamedTuple):
    """A call and its time, in seconds or in ticks."""

    time: float
    call: TraceCall


def ticks_of(calls: Iterable[Timed]) -> list[TraceTick]:
    """One tick for each time, in order. An agent's calls of the same time get successive rounds."""
    ordered = sorted(calls, key=lambda timed: timed.time)
    return [
        TraceTick(time, [], in_rounds([[timed.call] for timed in together]))
        for time, together in groupby(ordered, key=lambda timed: timed.time)
    ]


def in_rounds(groups: Iterable[Sequence[TraceCall]]) -> list[TraceCall]:
    """The calls of ``groups``, with rounds such that an agent's calls of one group come before its
    calls of later groups. Calls without an agent keep their round."""
    first: dict[AgentId, int] = {}
    found = []
    for group in groups:
        next_round = dict(first)
        for call in group:
            if call.agent is not None:
                round = first.get(call.agent, 0) + call.round
                next_round[call.agent] = max(next_round.get(call.agent, 0), round + 1)
                call = call if call.round == round else replace(call, round=round)
            found.append(call)
        first = next_round
    return found


def in_order(ticks: Iterable[TraceTick]) -> Iterator[Timed]:
    """The calls of ``ticks`` with their times, in order of time and round."""
    for tick in ticks:
        for call in sorted(tick.calls, key=lambda call: call.round):
            yield Timed(tick.time, call)
