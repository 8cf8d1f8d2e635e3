"""The waiting line: sequences that wait for their first admission, by priority and then by arrival.

A sequence cannot starve: one that stands first in its priority and was overtaken ``max_skips``
times goes before all others from then on.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain, islice

from scalesim.scheduler.sequence import Sequence

FIRST = -math.inf
"""The priority of a sequence that was overtaken too often: before all that a caller can give."""


class WaitingLine:
    """Iterates in the order of service."""

    def __init__(self, max_skips: int) -> None:
        self._max_skips = max_skips
        self._levels: dict[float, OrderedDict[int, Sequence]] = {}  # by priority, ascending

    def __len__(self) -> int:
        return sum(map(len, self._levels.values()))

    def __iter__(self) -> Iterator[Sequence]:
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
        """Up to ``count`` sequences of the most urgent priority, the oldest first."""
        for level in self._levels.values():
            return list(islice(level.values(), count))
        return []

    def admitted(self, sequence: Sequence) -> None:
        """``sequence`` leaves the line, and overtakes the older heads of less urgent priorities."""
        heads = [next(iter(level.values())) for level in self._levels.values()]
        self.discard(sequence)
        for head in heads:
            if head.priority > sequence.priority and head.id < sequence.id:
                head.skipped += 1
                if head.skipped >= self._max_skips:
                    self.discard(head)
                    head.priority = FIRST
                    self.add(head)
