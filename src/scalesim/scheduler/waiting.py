"""The line of sequences that wait for their first admission: by priority, then in order of arrival.

Used by the scheduler. Preempted sequences are not in it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain, islice

from scalesim.scheduler.sequence import Sequence

FIRST = -math.inf
"""The priority of who was overtaken too often: before everybody, whatever theirs."""


class WaitingLine:
    """Lower priorities first. A sequence that others of a more urgent priority have overtaken
    ``max_skips`` times while it stood first in its own goes before all."""

    def __init__(self, max_skips: int) -> None:
        self._max_skips = max_skips
        self._levels: dict[float, OrderedDict[int, Sequence]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._levels.values()))

    def __iter__(self) -> Iterator[Sequence]:
        """In the order of service."""
        return chain.from_iterable(level.values() for level in self._levels.values())

    def add(self, sequence: Sequence) -> None:
        level = self._levels.get(sequence.priority)
        if level is None:
            level = self._levels[sequence.priority] = OrderedDict()
            self._levels = dict(sorted(self._levels.items()))
        level[sequence.id] = sequence

    def discard(self, sequence: Sequence) -> None:
        level = self._levels.get(sequence.priority)
        if level is not None and level.pop(sequence.id, None) is not None and not level:
            del self._levels[sequence.priority]

    def first(self, count: int) -> list[Sequence]:
        """Up to ``count`` of the most urgent priority, the oldest first."""
        for level in self._levels.values():
            return list(islice(level.values(), count))
        return []

    def pass_over(self, sequence: Sequence) -> None:
        """``sequence`` is admitted: it leaves the line, and overtakes those of lesser priority that
        came before it."""
        heads = [next(iter(level.values())) for level in self._levels.values()]
        self.discard(sequence)
        for head in heads:
            if head.priority > sequence.priority and head.id < sequence.id:
                overtake(head, self._max_skips, self)


def overtake(sequence: Sequence, max_skips: int, line: WaitingLine | None = None) -> None:
    """One of a more urgent priority goes before ``sequence``, which waits in ``line``."""
    sequence.skipped += 1
    if sequence.skipped >= max_skips:
        if line is not None:
            line.discard(sequence)
        sequence.priority = FIRST
        if line is not None:
            line.add(sequence)
