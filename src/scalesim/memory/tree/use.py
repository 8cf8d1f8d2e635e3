"""The time of a use: by what segments are ordered."""

from __future__ import annotations

from typing import NamedTuple


class UseTime(NamedTuple):
    """When something is used. Times in ticks of the simulation's clock.

    ``next_use`` is ``None`` where unknown, ``inf`` where nothing speaks for another use.
    ``last_seq`` and ``next_seq`` are engine sequence numbers that break ties: of the last use, and
    of the next one.
    """

    next_use: float | None
    next_seq: int
    last_use: float
    last_seq: int

    def distance(self, now: float) -> float:
        """Ticks until the next use, as far as it can be told."""
        return now - self.last_use if self.next_use is None else self.next_use - now

    def sooner_than(self, other: UseTime, now: float) -> bool:
        """Whether this use comes before ``other``'s; equal distances go by sequence number."""
        mine, theirs = self.distance(now), other.distance(now)
        if mine != theirs:
            return mine < theirs
        if (self.next_use is None) != (other.next_use is None):
            return self.next_use is not None  # a stated time is believed before a guessed one
        if self.next_use is None:
            return self.last_seq > other.last_seq
        return self.next_seq < other.next_seq
