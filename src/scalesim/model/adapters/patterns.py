r"""Matching of an adapter's regular expressions in a bounded number of steps.

Python's ``re`` backtracks: a pattern such as ``(?:[a-z.]+)+X`` takes years on a name of 40
characters, with the interpreter's lock held, so that nothing else runs in the process. Here, the
set of positions at which a part of the pattern may end is computed once for each position at which
the part may begin. The answer, whether there is a match, equals that of ``re``. Constructs that
depend on *which* match was found (back references, conditions, atomic groups, possessive repeats)
are refused. The parser is Python's own.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from scalesim.errors import AdapterError

_parser = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")

MAX_PATTERN = 512
MAX_STEPS = 1 << 24
"""The most steps of all patterns of one adapter on all names: some hundred times the usual
number."""

_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "CATEGORY_DIGIT": str.isdecimal,
    "CATEGORY_SPACE": str.isspace,
    "CATEGORY_WORD": lambda char: char.isalnum() or char == "_",
}


class Patterns:
    """The matcher for the patterns of one adapter. Raises ``AdapterError`` if they take too many
    steps together, use a refused construct, or are no regular expressions."""

    def __init__(self, max_steps: int = MAX_STEPS) -> None:
        self._left = max_steps

    def match(self, pattern: str, name: str) -> bool:
        """Whether ``pattern`` matches at the beginning of ``name``: ``re.match(pattern, name)``."""
        run = _PatternMatch(name, self._left)
        try:
            items, run.ignore_case = _parsed(pattern)
            return run.ends(items, 0) != 0
        except RecursionError as error:
            raise AdapterError(f"pattern {pattern!r} is nested too deeply") from error
        except _TooLong:
            raise AdapterError(
                f"pattern {pattern!r} takes too many steps: the patterns of an adapter may take "
                f"{MAX_STEPS} together"
            ) from None
        finally:
            self._left = run.left


class _TooLong(Exception):
    pass


@lru_cache(maxsize=256)
def _parsed(pattern: str) -> tuple[Any, bool]:
    """The parse tree, and whether case is ignored."""
    try:
        tree = _parser.parse(pattern)
    except (re.error, OverflowError, Warning) as error:
        raise AdapterError(f"pattern {pattern!r} is not valid: {error}") from error
    return tree, bool(tree.state.flags & re.IGNORECASE)


class _PatternMatch:
    """The matching of one pattern against ``text``. A set of positions is a bit mask."""

    def __init__(self, text: str, max_steps: int) -> None:
        self.text, self.left, self.ignore_case = text, max_steps, False
        self._known: dict[tuple[int, int], int] = {}

    def ends(self, items: Any, start: int) -> int:
        """The positions at which the sequence ``items`` may end if it begins at ``start``."""
        key = (id(items), start)
        if key not in self._known:
            places = 1 << start
            for op, argument in items:
                begin, places = places, 0
                for position in bits(begin):
                    places |= self._one(str(op), argument, position)
            self._known[key] = places
        return self._known[key]

    def _one(self, op: str, argument: Any, position: int) -> int:
        self.left -= 1
        if self.left < 0:
            raise _TooLong
        if op in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            fits = position < len(self.text) and self._fits(op, argument, self.text[position])
            return 2 << position if fits else 0
        if op == "AT":
            return 1 << position if self._is_at(str(argument), position) else 0
        key = (id(argument), position)  # the parse tree keeps its parts, so no id means two of them
        if key not in self._known:
            self._known[key] = self._whole(op, argument, position)
        return self._known[key]

    def _whole(self, op: str, argument: Any, position: int) -> int:
        """The positions at which a compound item may end."""
        if op == "BRANCH":
            ends = 0
            for items in argument[1]:
                ends |= self.ends(items, position)
            return ends
        if op == "SUBPATTERN":
            _, add_flags, del_flags, items = argument
            if add_flags or del_flags:
                raise AdapterError("a pattern with flags inside a group is not run")
            return self.ends(items, position)
        if op in ("MAX_REPEAT", "MIN_REPEAT"):
            least, maximum, repeated = argument
            return self._repeat(least, maximum, repeated, position)
        if op in ("ASSERT", "ASSERT_NOT"):
            direction, items = argument
            if direction > 0:
                found = self.ends(items, position) != 0
            else:
                shortest, longest = items.getwidth()
                if shortest != longest:
                    raise AdapterError("a pattern that looks behind must do so by a fixed width")
                start = position - shortest
                found = start >= 0 and bool(self.ends(items, start) & 1 << position)
            return 1 << position if found == (op == "ASSERT") else 0
        raise AdapterError(f"a pattern with {op.lower().replace('_', ' ')} is not run")

    def _repeat(self, least: int, maximum: int, items: Any, position: int) -> int:
        frontier = 1 << position
        # With more rounds than characters, one is empty, and further rounds change nothing.
        for _ in range(min(int(least), len(self.text) + 1)):
            frontier = self._round(items, frontier)
        ends, rounds = frontier, int(least)
        while frontier and rounds < int(maximum):
            frontier = self._round(items, frontier) & ~ends
            ends, rounds = ends | frontier, rounds + 1
        return ends

    def _round(self, items: Any, starts: int) -> int:
        ends = 0
        for position in bits(starts):
            self.left -= 1
            ends |= self.ends(items, position)
        return ends

    def _fits(self, op: str, argument: Any, char: str) -> bool:
        if op == "ANY":
            return char != "\n"
        variants = {char, char.lower(), char.upper()} if self.ignore_case else {char}
        if op == "IN":
            negated = str(argument[0][0]) == "NEGATE"
            found = any(_is_in(str(kind), value, variants) for kind, value in argument)
            return found != negated
        return (argument in map(ord, variants)) == (op == "LITERAL")

    def _is_at(self, place: str, position: int) -> bool:
        text = self.text
        if place in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return position == 0
        if place in ("AT_END", "AT_END_STRING"):
            return position == len(text)
        is_word = _CATEGORIES["CATEGORY_WORD"]
        before, after = (
            position > 0 and is_word(text[position - 1]),
            position < len(text) and is_word(text[position]),
        )
        return (before != after) == (place == "AT_BOUNDARY")


def _is_in(kind: str, value: Any, variants: set[str]) -> bool:
    if kind == "LITERAL":
        return any(ord(char) == value for char in variants)
    if kind == "RANGE":
        return any(value[0] <= ord(char) <= value[1] for char in variants)
    if kind == "CATEGORY":
        name = str(value)
        found = any(_CATEGORIES[name.replace("_NOT_", "_")](char) for char in variants)
        return found != ("_NOT_" in name)
    return False  # NEGATE


def bits(mask: int) -> Iterator[int]:
    """The positions of the set bits, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
