"""Happens-before race detection with vector clocks.

Two accesses to the same memory, one of them a write, must be ordered by a queue, a wait, or a
completion that the host saw. ``Races`` raises if nothing orders them, even if the bytes came out
right. Used by the hostile device and by ``PageWatch``.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

VectorClock = dict[str, int]
"""For each queue, the number of its last piece of work that an access is ordered after."""


class RaceError(AssertionError):
    """Two unordered accesses to the same memory, one of them a write."""


def join(clock: VectorClock, other: VectorClock) -> None:
    """Make ``clock`` the maximum of both clocks, per queue."""
    for name, count in other.items():
        if clock.get(name, 0) < count:
            clock[name] = count


@dataclass(slots=True)
class _Place:
    """The last write and reads of one piece of memory, by queue: number of the work, and its
    label."""

    written: dict[str, tuple[int, str]] = field(default_factory=dict)
    read: dict[str, tuple[int, str]] = field(default_factory=dict)


class Races:
    """The last accesses to every piece of memory. Only the first race is reported, because later
    ones may follow from it."""

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
        """Note that queue ``who`` reads or writes ``piece`` of ``region``, ordered after ``clock``;
        ``label`` names the access. Raises ``RaceError``, naming both accesses of a race."""
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
