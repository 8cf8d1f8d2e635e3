"""The waiting line: sequences that wait for their first admission, by priority, then by the longest
expected work, then by age.

A sequence cannot starve: one that is the oldest of its priority and was overtaken ``max_skips``
times goes before all others from then on.

Whoever prepares for those who are served next is told of each once (``take_next``): the line
remembers how far it was read, so that a long one is not read again for each step.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import chain

from scalesim.core import AgentId
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

    def __len__(self) -> int:
        return len(self.by_work)

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
            del self.by_work[self.index(sequence)]

    def index(self, sequence: Sequence) -> int:
        """How many come before ``sequence``."""
        return bisect_left(self.by_work, _order(sequence), key=_order)


class WaitingLine:
    """Iterates in the order of service. The ``work`` of a sequence in line is not changed; its
    agent may become ``None``, when it is forgotten.

    Of the first ``_num_taken`` in line, all were given by ``take_next`` but those in ``_joined``.
    """

    def __init__(self, max_skips: int) -> None:
        self._max_skips = max_skips
        self._levels: dict[float, _Level] = {}  # by priority, ascending
        self._by_agent: dict[AgentId, dict[int, Sequence]] = {}
        self._joined_as: dict[int, AgentId] = {}  # the keys in ``_by_agent``, by id
        self._num_taken = 0
        self._joined: dict[int, Sequence] = {}

    def __len__(self) -> int:
        return sum(map(len, self._levels.values()))

    def __iter__(self) -> Iterator[Sequence]:
        return chain.from_iterable(level.by_work for level in self._levels.values())

    def add(self, sequence: Sequence) -> None:
        level = self._levels.get(sequence.priority)
        if level is None:
            level = self._levels[sequence.priority] = _Level()
            self._levels = dict(sorted(self._levels.items()))
        level.add(sequence)
        if sequence.agent is not None:
            self._joined_as[sequence.id] = sequence.agent
            self._by_agent.setdefault(sequence.agent, {})[sequence.id] = sequence
        if self._num_taken and self.position(sequence) < self._num_taken:
            self._num_taken += 1
            self._joined[sequence.id] = sequence

    def discard(self, sequence: Sequence) -> None:
        level = self._levels.get(sequence.priority)
        if level is None or sequence.id not in level.by_id:
            return
        if self.position(sequence) < self._num_taken:
            self._num_taken -= 1
            self._joined.pop(sequence.id, None)
        level.discard(sequence)
        if not level.by_id:
            del self._levels[sequence.priority]
        agent = self._joined_as.pop(sequence.id, None)
        if agent is not None:
            of_agent = self._by_agent[agent]
            del of_agent[sequence.id]
            if not of_agent:
                del self._by_agent[agent]

    def position(self, sequence: Sequence) -> int:
        """How many are served before ``sequence``, which is in line."""
        before = (len(level) for priority, level in self._levels.items()
                  if priority < sequence.priority)  # fmt: skip
        return sum(before) + self._levels[sequence.priority].index(sequence)

    def position_of(self, agent: AgentId) -> int | None:
        """How many are served before the first sequence of ``agent``; ``None`` if none waits."""
        own = (one for one in self._by_agent.get(agent, {}).values() if one.agent == agent)
        return min(map(self.position, own), default=None)

    def take_next(self, count: int) -> list[Sequence]:
        """Those of the first ``count`` in line that were not given since they joined it, in the
        order of service. Who was given and then fell behind others, to ``count`` or farther, is
        given again. O(log n) for each that is given or joined, whatever ``count`` is."""
        if self._joined:
            self._num_taken = min(self._num_taken, count)
        joined = sorted((self.position(one), one.id) for one in self._joined.values())
        taken = [self._joined[id] for position, id in joined if position < self._num_taken]
        taken += self._slice(self._num_taken, count)
        self._num_taken = max(self._num_taken, min(count, len(self)))
        self._joined.clear()
        return taken

    def _slice(self, first: int, end: int) -> Iterator[Sequence]:
        """The sequences at the positions ``first … end``, without looking at those before."""
        for level in self._levels.values():
            if end <= 0:
                return
            yield from level.by_work[first:end]
            first, end = max(0, first - len(level)), end - len(level)

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
