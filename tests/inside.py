"""What a running object is made of, found by class: tests need not know who keeps it, nor where."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def parts(thing: object) -> Iterator[object]:
    """``thing``, and every object of ScaleSim that it is made of, the nearest first."""
    seen: dict[int, object] = {}
    line = deque([thing])
    while line:
        found = line.popleft()
        if id(found) in seen or not type(found).__module__.startswith("scalesim"):
            continue
        seen[id(found)] = found
        yield found
        line += getattr(found, "__dict__", {}).values()
        slots = [name for made in type(found).__mro__ for name in getattr(made, "__slots__", ())]
        line += [getattr(found, name, None) for name in slots]


def part(thing: object, kind: type[T]) -> T:
    """The ``kind`` that ``thing`` is made of."""
    return next(found for found in parts(thing) if isinstance(found, kind))
