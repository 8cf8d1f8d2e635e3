"""Resource limits of one rendering of a chat template: loop rounds, work, and sizes of values.

Sizes are approximate bytes: 64 per value and one per character, with a container's contents counted
as often as they would be printed. Because no value exceeds ``MAX_SIZE``, one operation on a value
has a bounded cost; ``MAX_WORK`` bounds the sum over all operations. Operations whose result can be
much larger than their arguments (a width, a repetition, a replacement, a join) are checked before
they run; all others are checked afterwards.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Callable, ItemsView, Iterable, KeysView, Mapping, ValuesView
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

MAX_ROUNDS = 200_000
"""The most loop rounds and calls of one rendering. A long real conversation takes thousands."""

MAX_SIZE = 1 << 25
MAX_WORK = 1 << 30
MAX_BITS = 1 << 14  # of an integer
MAX_WIDTH = 1 << 16  # of a padded field or an indent
ITEM = 64

_LINEAR_OF_TEXT = frozenset(
    [
        "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha",
        "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable",
        "isspace", "istitle", "isupper", "lower", "lstrip", "partition", "removeprefix",
        "removesuffix", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines",
        "startswith", "strip", "swapcase", "title", "upper",
    ]
)  # fmt: skip
_METHODS: tuple[tuple[type, frozenset[str]], ...] = (
    (dict, frozenset(["copy", "get", "items", "keys", "values"])),
    (list, frozenset(["copy", "count", "index"])),
    (tuple, frozenset(["count", "index"])),
    (float, frozenset(["is_integer"])),
    (int, frozenset(["bit_length"])),
    (bytes, frozenset()),
    (type, frozenset()),  # methods of classes, such as dict.fromkeys
)
NOT_RUN = frozenset(["pprint", "random", "striptags", "urlize", "wordwrap"])
"""Filters that are refused: their cost is not linear in their input, and no chat needs them."""


class Meter:
    """The counters of one rendering. Methods raise jinja2's ``SecurityError`` beyond a limit."""

    def __init__(self) -> None:
        self._rounds, self._work = MAX_ROUNDS, MAX_WORK
        self._sizes: dict[int, tuple[object, int]] = {}  # known sizes of immutable containers
        self._open: set[int] = set()  # containers that are being measured, to find cycles
        self._now: dict[int, tuple[object, int]] = {}  # sizes known within one measurement

    def tick(self, text: int = 0) -> None:
        """Count a loop round or a call, which writes ``text`` characters of the template's own
        text."""
        self._rounds -= 1
        if self._rounds < 0:
            raise SecurityError(f"more than {MAX_ROUNDS} loop rounds and calls")
        self._spend(text)

    def afford(self, size: float) -> None:
        """Count a value of this size before it is made; raise if it is too large."""
        if size > MAX_SIZE:
            raise SecurityError(f"a value of {size:.3g} bytes; {MAX_SIZE} are the most")
        self._spend(int(size))

    def take(self, value: Any) -> Any:
        """Count ``value``, which was just made or is about to be read, and return it."""
        self.size(value)
        is_sized = isinstance(value, (str, bytes, list, tuple, dict))
        self._spend(len(value) * (1 if isinstance(value, str) else ITEM) if is_sized else ITEM)
        return value

    def size(self, value: object) -> int:
        """The size of ``value``; raises if it is too large."""
        if isinstance(value, (str, bytes)):
            size = ITEM + len(value)
        elif isinstance(value, int):
            if value.bit_length() > MAX_BITS:
                raise SecurityError(f"a number of more than {MAX_BITS} bits")
            size = ITEM
        elif isinstance(value, (dict, list, tuple, Namespace)):
            size = self._size_of_container(value)
        elif isinstance(value, (KeysView, ValuesView, ItemsView)):
            size = self._sum(value)
        else:
            size = ITEM  # lazy sequences are measured as they are read
        if size > MAX_SIZE:
            raise SecurityError(f"a value of more than {MAX_SIZE} bytes")
        return size

    def _size_of_container(self, value: Any) -> int:
        key = id(value)
        if key in self._sizes:
            return self._sizes[key][1]
        if not self._open:
            self._now.clear()
        elif key in self._now:
            return self._now[key][1]
        if key in self._open:
            raise SecurityError("a value that holds itself")
        self._open.add(key)
        try:
            parts = value
            if isinstance(value, Namespace):
                parts = object.__getattribute__(value, "_Namespace__attrs")
            size = ITEM + self._sum(_parts_of(parts))
        finally:
            self._open.discard(key)
        self._now[key] = (value, size)
        if not isinstance(value, Namespace) and not self._holds_namespace(value):
            self._sizes[key] = (value, size)
        return size

    def _holds_namespace(self, value: Any) -> bool:
        """Whether ``value`` contains a namespace, so that its size may change. A contained
        container without a known size contains one."""
        return any(
            isinstance(part, Namespace)
            or (isinstance(part, (dict, list, tuple)) and id(part) not in self._sizes)
            for part in _parts_of(value)
        )

    def _sum(self, parts: Any) -> int:
        total = 0
        for part in parts:
            total += self.size(part)
            if total > MAX_SIZE:
                raise SecurityError(f"a value of more than {MAX_SIZE} bytes")
        return total

    def _spend(self, work: int) -> None:
        self._work -= work
        if self._work < 0:
            raise SecurityError(f"more than {MAX_WORK} bytes of values made and read")


def _parts_of(value: Any) -> Iterable[Any]:
    return itertools.chain(value, value.values()) if isinstance(value, dict) else value


def checked_width(value: object) -> int:
    """A field's width or an indent, given as a number or as a string of that length. Raises if it
    is above ``MAX_WIDTH``."""
    size = len(value) if isinstance(value, str) else value
    if not isinstance(size, int) or abs(size) > MAX_WIDTH:
        raise SecurityError(f"a width of {size!r:.40}; {MAX_WIDTH} is the most")
    return max(size, 0)


def _padded(value: Any, width: Any = 80, *_: Any) -> int:
    return len(str(value)) + checked_width(width)


def _expandtabs(text: Any, tabsize: Any = 8) -> int:
    return len(text) + str(text).count("\t") * checked_width(tabsize)


def _indent(s: Any, width: Any = 4, first: Any = False, blank: Any = False) -> int:
    return len(str(s)) + (len(str(s).splitlines()) + 1) * checked_width(width)


def _replace(s: Any, old: Any, new: Any, count: Any = None) -> int:
    times = str(s).count(str(old))
    if isinstance(count, int) and count >= 0:
        times = min(times, count)
    return len(str(s)) + times * len(str(new))


def _batch(value: Any, linecount: Any, fill_with: Any = None) -> int:
    return checked_width(linecount) * ITEM


def _slice(value: Any, slices: Any, fill_with: Any = None) -> int:
    return checked_width(slices) * ITEM


def _round(value: Any, precision: Any = 0, method: Any = None) -> int:
    if not isinstance(precision, int) or abs(precision) > 300:
        raise SecurityError(f"precision {precision!r:.40}; 300 is the most")
    return 0


_DIGITS = re.compile(r"\d+")
_PERCENT = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d*)(?:\.(\*|\d*))?[hlL]?.", re.DOTALL)


def percent_size(meter: Meter, template: str, values: Any) -> int:
    """An upper bound of the size of ``template % values``."""
    fields = _PERCENT.findall(template)
    if any("*" in field for field in fields):
        raise SecurityError("a width taken from a value")
    widths = sum(checked_width(int(part[:9])) for field in fields for part in field if part)
    if isinstance(values, Mapping):  # each field may take any of them
        return len(template) + widths + len(fields) * meter.size(values)
    return len(template) + widths + meter.size(values)


def format_size(meter: Meter, template: str, values: Any) -> int:
    """An upper bound of the size of ``template.format(...)`` with these values."""
    size, fields = len(template), 0
    for _, name, spec, _ in string.Formatter().parse(template):
        if name is None:
            continue
        fields += 1
        if "{" in (spec or ""):
            raise SecurityError("a width taken from a value")
        size += sum(checked_width(int(part[:9])) for part in _DIGITS.findall(spec or ""))
    return size + fields * meter.size(values)


GROWTH: dict[str, Callable[..., int]] = {
    "batch": _batch,
    "center": _padded,
    "expandtabs": _expandtabs,
    "indent": _indent,
    "ljust": _padded,
    "replace": _replace,
    "rjust": _padded,
    "round": _round,
    "slice": _slice,
    "zfill": _padded,
}
"""Upper bounds of the size of a result, for filters and methods of strings."""
_OF_TEXT = _LINEAR_OF_TEXT | (GROWTH.keys() - {"batch", "indent", "round", "slice"}) | {"join"}


def check_method(call: Any) -> str | None:
    """The name of ``call`` if it is a method of a built-in type, else ``None``; raises for a method
    that templates may not call."""
    owner = getattr(call, "__self__", None)
    if isinstance(owner, str):
        allowed: frozenset[str] | None = _OF_TEXT
    else:
        allowed = next((names for kind, names in _METHODS if isinstance(owner, kind)), None)
    if allowed is None:
        return None
    name = str(getattr(call, "__name__", ""))
    if name not in allowed:
        raise SecurityError(f"{type(owner).__name__}.{name} is not run in a template")
    return name
