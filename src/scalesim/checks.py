"""Checks of callers' values. A check returns the value as a plain value, or raises an error.

A plain value is exactly an ``int``, ``float``, ``bool`` or ``str``: it has no methods of a caller's
that could fail, or change, on another thread. NumPy's numbers and instances of subclasses are
accepted and made plain. An error has the shortened value and the rule; ``error`` is its type.
"""

from __future__ import annotations

import difflib
import math
import os
import reprlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from scalesim.errors import RequestError, ScaleSimError
from scalesim.interrupts import is_ctrl_c

INT64 = 2**63  # 1 more than the largest int64
MAX_ID_CHARS = 1024
MAX_ID_BITS = 256
_NUMBERS = (int, float, np.integer, np.floating)
_MOST_SHOWN = 120  # characters of a value in a message
_MOST_BITS = 256  # of a number whose digits are shown

Error: TypeAlias = type[ScaleSimError]


def whole(
    name: str,
    value: object,
    minimum: int | None = None,
    maximum: int = INT64 - 1,
    error: Error = RequestError,
) -> int:
    """A whole number from ``minimum`` to ``maximum``."""
    if type(value) is int:
        found = value
    elif isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        found = _as_int(value)
    else:
        refuse(name, value, f"must be a whole number{_range(minimum, maximum)}", error)
    if (minimum is not None and found < minimum) or found > maximum:
        refuse(name, value, f"must be a whole number{_range(minimum, maximum)}", error)
    return found


def number(
    name: str,
    value: object,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    error: Error = RequestError,
    *,
    above: bool = False,
) -> float:
    """A finite number from ``minimum`` to ``maximum``; ``above`` excludes ``minimum`` itself."""
    if type(value) is float:
        found = value
    elif isinstance(value, _NUMBERS) and not isinstance(value, bool):
        found = _as_float(value)
    else:
        refuse(name, value, "must be a number", error)
    if not math.isfinite(found) or not minimum <= found <= maximum or (above and found == minimum):
        lower = "" if minimum == -math.inf else f"{'above' if above else 'at least'} {minimum}"
        upper = "" if maximum == math.inf else f"at most {maximum}"
        rule = " and ".join(filter(None, (lower, upper)))
        refuse(name, value, f"must be finite{', ' if rule else ''}{rule}", error)
    return found


def numbers(
    name: str, values: Any, count: int, minimum: float, maximum: float, error: Error = RequestError
) -> npt.NDArray[np.float64]:
    """Numbers from ``minimum`` to ``maximum``, as an array ``[count]`` of their own. A single
    number is repeated."""
    with reading(name, error):
        given = np.asarray(values)
        found = np.broadcast_to(given.astype(np.float64), (count,)).copy()
    if given.dtype.kind not in "iuf":
        refuse(name, values, "must be numbers", error)
    wrong = ~((found >= minimum) & (found <= maximum))
    if wrong.any():
        refuse(name, float(found[wrong][0]), f"must lie between {minimum} and {maximum}", error)
    return found


def flag(name: str, value: object, error: Error = RequestError) -> bool:
    """``True`` or ``False``. Other values are refused: a text like ``"false"`` would count as
    true."""
    if not isinstance(value, (bool, np.bool_)):
        refuse(name, value, "must be True or False", error)
    return bool(value)


def text(name: str, value: object, error: Error = RequestError, *, empty: bool = True) -> str:
    """A string that can be encoded as UTF-8, so without half a surrogate pair."""
    if not isinstance(value, str):
        refuse(name, value, "must be a string", error)
    plain = value if type(value) is str else str.__str__(value)
    if not (plain or empty):
        refuse(name, value, "must not be empty", error)
    if not plain.isascii():
        try:
            plain.encode()
        except UnicodeEncodeError as bad:
            rule = f"is no Unicode text: half a surrogate pair stands at position {bad.start}"
            refuse(name, value, rule, error)
    return plain


def one_of(name: str, value: object, choices: Collection[str], error: Error = RequestError) -> str:
    """One of the names ``choices``."""
    plain = text(name, value, error) if isinstance(value, str) else None
    if plain is None or plain not in choices:
        listed = ", ".join(map(repr, choices))
        refuse(name, value, f"must be one of: {listed}{_hint(plain, choices)}", error)
    return plain


def agent_id(value: object, error: Error = RequestError) -> str | int:
    """An agent's id: a string, or a whole number of at most 256 bits."""
    if isinstance(value, str):
        plain = text("agent id", value, error)
        if len(plain) > MAX_ID_CHARS:
            refuse("agent id", value, f"must have at most {MAX_ID_CHARS} characters", error)
        return plain
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        refuse("agent id", value, "must be a string or a whole number", error)
    found = _as_int(value)
    if found.bit_length() > MAX_ID_BITS:
        refuse("agent id", value, f"must be a whole number of at most {MAX_ID_BITS} bits", error)
    return found


def agent_ids(name: str, values: object, error: Error = RequestError) -> list[str | int]:
    """Agents' ids, in order. The ids in a text are its letters."""
    if not isinstance(values, Iterable):
        refuse(name, values, "must be a list of agent ids", error)
    with reading(name, error):
        ids = list(values)
    kinds = set(map(type, ids))
    if kinds == {str} and max(map(len, ids)) <= MAX_ID_CHARS and "".join(ids).isascii():
        return ids  # checked together, because most lists are like this
    if kinds == {int} and max(max(ids), -min(ids)).bit_length() <= MAX_ID_BITS:
        return ids
    return [agent_id(id, error) for id in ids]


def listed(name: str, values: object, rule: str, error: Error = RequestError) -> list[Any]:
    """The items of ``values``. Texts and mappings are refused: their items are seldom meant."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        refuse(name, values, rule, error)
    with reading(name, error):
        return list(values)


def instance(name: str, value: object, kind: type, hint: str, error: Error = RequestError) -> None:
    """Refuse a value that is no ``kind``; ``hint`` says what to give."""
    if isinstance(value, kind):
        return
    if isinstance(value, type) and issubclass(value, kind):
        hint = f"it is a class: make one, {value.__name__}(...)"
    refuse(name, value, f"must be a {kind.__name__}; {hint}", error)


def path_of(name: str, value: object, error: Error = RequestError) -> Path:
    """A path that an operating system accepts. Whether there is a file is not checked."""
    if not isinstance(value, (str, os.PathLike)):
        refuse(name, value, "must be a path", error)
    if isinstance(value, str) and is_url(value):
        refuse(name, value, "must be a path, and is a URL", error)
    with reading(name, error):
        path = Path(value)
        try:
            os.fsencode(path)
        except UnicodeEncodeError:
            refuse(name, value, "must be a path that this system can encode", error)
    if not str(value) or "\0" in str(path) or any(len(part) > 255 for part in path.parts):
        refuse(name, value, "must be a path, with names of 1 to 255 characters", error)
    return path


def place_of(name: str, value: object, error: Error = RequestError) -> str | Path:
    """A URL as it is, or a path that stays where it is when the process changes its folder; ``~``
    is its user's. Whether anything is there is not checked."""
    if isinstance(value, str) and is_url(value):
        return value
    path = path_of(name, value, error)
    with reading(name, error):
        try:
            return path.expanduser().absolute()
        except RuntimeError:
            refuse(name, value, "begins with ~, and this user has no home folder", error)


def is_url(place: str) -> bool:
    """Whether ``place`` names a store by URL, and is no path."""
    return "://" in place


def function(name: str, value: object, takes: str, error: Error = RequestError) -> None:
    """Refuse a value that is not callable; ``takes`` names its parameters."""
    if not callable(value):
        refuse(name, value, f"must be a function of {takes}", error)


@contextmanager
def reading(name: str, error: Error = RequestError) -> Iterator[None]:
    """Reads a caller's object in its block: an exception of the object becomes an ``error`` with
    the object's name."""
    try:
        yield
    except ScaleSimError:
        raise
    except Exception as cause:
        why = f"{type(cause).__name__}: {shown(cause.args[0]) if cause.args else ''}"
        raise error(f"{name} cannot be read: {why}") from cause


def unknown_option(name: str, known: Iterable[str], what: str) -> str:
    """The message for an unknown option, with the options that may be meant."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}"
    return f"unknown {what} {shown(name)}; {hint}"


def refuse(name: str, value: object, rule: str, error: Error = RequestError) -> NoReturn:
    """Raise ``error`` for ``value``, which breaks ``rule``."""
    raise error(f"{name}={shown(value)} {rule}")


def shown(value: object) -> str:
    """A short ``repr`` of any value, even of a huge number, of a megabyte of text, or of an object
    whose ``repr`` fails."""
    try:
        written = _SHORT.repr(value)
    except BaseException as error:  # of a caller's ``__repr__``, perhaps on the engine's thread
        if is_ctrl_c(type(error)):
            raise
        written = f"<{type(value).__name__}>"
    return written if len(written) <= _MOST_SHOWN else f"{written[:_MOST_SHOWN]}…"


class _Short(reprlib.Repr):
    """Describes numbers with more digits than Python writes."""

    def repr_int(self, x: int, level: int) -> str:
        bits = x.bit_length()
        return repr(x) if bits <= _MOST_BITS else f"<a whole number of {bits} bits>"

    def repr_str(self, x: str, level: int) -> str:
        if len(x) <= self.maxstring:
            return repr(x)
        return f"{x[: self.maxstring]!r}… ({len(x)} characters)"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = 60


def _as_int(value: Any) -> int:
    """The value as exactly an ``int``, without calling methods of a subclass."""
    return int.__index__(value) if isinstance(value, int) else int(value)


def _as_float(value: Any) -> float:
    """The value as exactly a ``float``; infinity for a number that is too large."""
    if isinstance(value, float):
        return float.__float__(value)
    try:
        return float(_as_int(value) if isinstance(value, int) else value)
    except OverflowError:
        return math.inf


def _range(minimum: int | None, maximum: int) -> str:
    if minimum is None:
        return "" if maximum == INT64 - 1 else f", at most {maximum}"
    if maximum == INT64 - 1:
        return f", at least {minimum} and below 2**63"
    return f" from {minimum} to {maximum}"


def _hint(value: str | None, choices: Iterable[str]) -> str:
    near = difflib.get_close_matches(value[:_MOST_SHOWN], choices, n=1) if value else []
    return f" (did you mean {near[0]!r}?)" if near else ""
