"""Happens-before: vector clocks, and who touched each piece of memory last.

Two accesses to one piece, one of them a write, must be ordered by something: a queue, a wait, a
completion that the host saw. ``Races`` raises where nothing orders them, also where the bytes came
out right. Used by the hostile device and by ``PageWatch``.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

VectorClock = dict[str, int]
"""How much of each queue's work something is ordered after: queue -> number of its work."""


class RaceError(AssertionError):
    """Two accesses to one place, one of them a write, and nothing that orders them."""


def join(clock: VectorClock, other: VectorClock) -> None:
    """``clock`` now also knows what ``other`` knew."""
    for name, count in other.items():
        if clock.get(name, 0) < count:
            clock[name] = count


@dataclass(slots=True)
class _Place:
    """Who wrote and read one piece of memory last: queue -> number of its work, and its name."""

    written: dict[str, tuple[int, str]] = field(default_factory=dict)
    read: dict[str, tuple[int, str]] = field(default_factory=dict)


class Races:
    """The last accesses to every piece. One race is reported: what follows is none of its own."""

    def __init__(self) -> None:
        self.has_raced = False
        self._places: dict[tuple[str, Hashable], _Place] = {}

    def touch(
        self,
        region: str,
        piece: Hashable,
        who: str,
        clock: VectorClock,
        label: str,
        *,
        is_write: bool,
    ) -> None:
        """Queue ``who`` reads or writes ``piece`` of ``region``, ordered after what ``clock`` says;
        ``label`` names this access. Raises ``RaceError`` with both accesses."""
        place = self._places.get((region, piece))
        if place is None:
            place = self._places[region, piece] = _Place()
        for other, (count, theirs) in place.written.items():
            if clock.get(other, 0) < count:
                self._report(f"{region} {piece}", label, is_write, theirs, "written", clock, other)
        if is_write:
            for other, (count, theirs) in place.read.items():
                if clock.get(other, 0) < count:
                    self._report(f"{region} {piece}", label, True, theirs, "read", clock, other)
        (place.written if is_write else place.read)[who] = clock.get(who, 0), label

    def _report(
        self,
        what: str,
        label: str,
        is_write: bool,
        theirs: str,
        verb: str,
        clock: VectorClock,
        them: str,
    ) -> None:
        if self.has_raced:
            return
        self.has_raced = True
        raise RaceError(
            f"{what} is {'written' if is_write else 'read'} by {label}, and was {verb} by "
            f"{theirs}; {label} is ordered after number {clock.get(them, 0)} of {them} only"
        )
