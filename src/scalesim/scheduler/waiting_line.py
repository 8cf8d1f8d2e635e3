"""The waiting line: sequences that wait for their first admission, by priority, then by the longest
expected work, then by age.

A sequence cannot starve: one that is the oldest of its priority and was overtaken ``max_skips``
times goes before all others from then on.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import chain

from scalesim.scheduler.sequence import Sequence

FIRST = -math.inf
"""The priority of a sequence that was overtaken too often: before all that a caller can give."""


class _Level:
    """The waiting sequences of one priority: ``by_id`` and, in the order of service, ``by_work``.
    Sequences come in any order: calls that are handed in together, by their work."""

    def __init__(self) -> None:
        self.by_id: dict[int, Sequence] = {}
        self.by_work: list[Sequence] = []
        self._ages: list[int] = []  # a heap of ids, also of those that left

    @property
    def oldest(self) -> Sequence:
        while self._ages[0] not in self.by_id:
            heapq.heappop(self._ages)
        return self.by_id[self._ages[0]]

    def add(self, sequence: Sequence) -> None:
        self.by_id[sequence.id] = sequence
        heapq.heappush(self._ages, sequence.id)
        insort(self.by_work, sequence, key=_order)

    def discard(self, sequence: Sequence) -> None:
        if self.by_id.pop(sequence.id, None) is not None:
            del self.by_work[bisect_left(self.by_work, _order(sequence), key=_order)]


class WaitingLine:
    """Iterates in the order of service. The ``work`` of a sequence in line is not changed."""

    def __init__(self, max_skips: int) -> None:
        self._max_skips = max_skips
        self._levels: dict[float, _Level] = {}  # by priority, ascending

    def __len__(self) -> int:
        return sum(len(level.by_id) for level in self._levels.values())

    def __iter__(self) -> Iterator[Sequence]:
        return chain.from_iterable(level.by_work for level in self._levels.values())

    def add(self, sequence: Sequence) -> None:
        level = self._levels.get(sequence.priority)
        if level is None:
            level = self._levels[sequence.priority] = _Level()
            self._levels = dict(sorted(self._levels.items()))
        level.add(sequence)

    def discard(self, sequence: Sequence) -> None:
        level = self._levels.get(sequence.priority)
        if level is not None:
            level.discard(sequence)
            if not level.by_id:
                del self._levels[sequence.priority]

    def first(self, count: int) -> list[Sequence]:
        """Up to ``count`` sequences of the most urgent priority, in the order of service."""
        for level in self._levels.values():
            return level.by_work[:count]
        return []

    def admitted(self, sequence: Sequence) -> None:
        """``sequence`` leaves the line. It overtakes the oldest sequence of its own priority and of
        each less urgent one, where that sequence came before it."""
        overtaken = [
            level.oldest
            for priority, level in self._levels.items()
            if priority >= sequence.priority and level.oldest.id < sequence.id
        ]
        self.discard(sequence)
        for oldest in overtaken:
            oldest.skipped += 1
            if oldest.skipped >= self._max_skips and oldest.priority != FIRST:
                self.discard(oldest)
                oldest.priority, oldest.work = FIRST, 0.0  # among its like, the oldest goes first
                self.add(oldest)


def _order(sequence: Sequence) -> tuple[float, int]:
    return -sequence.work, sequence.id
