"""The next use of a segment or an agent: the key of every eviction and prefetch order."""

from __future__ import annotations

from typing import NamedTuple


class NextUse(NamedTuple):
    """When something is used next, as far as is known, and when it was used last. Times are in
    ticks of the simulation's clock.

    ``time`` is the next use: ``None`` where it is unknown, ``inf`` where no further use is
    expected. ``seq`` is the sequence number of the event that told the next use, ``last_seq`` that
    of the last use; both break ties.
    """

    time: float | None
    seq: int
    last_use: float
    last_seq: int

    def distance(self, now: float) -> float:
        """Ticks until the next use. An unknown next use is taken to be as far ahead as the last use
        is behind."""
        return now - self.last_use if self.time is None else self.time - now

    def sooner_than(self, other: NextUse, now: float) -> bool:
        """Whether this use comes before ``other``; equal distances are ordered by sequence
        number."""
        mine, theirs = self.distance(now), other.distance(now)
        if mine != theirs:
            return mine < theirs
        if (self.time is None) != (other.time is None):
            return self.time is not None  # a stated time is believed before a guessed one
        if self.time is None:
            return self.last_seq > other.last_seq
        return self.seq < other.seq
