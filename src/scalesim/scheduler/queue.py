"""Who waits to be admitted, and who of them is next.

Used by the scheduler. Those who come first wait by priority, then in order of arrival; those that
were admitted before and lost their pages stand apart, and go before their equals.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain, islice

from scalesim.config import SchedulerConfig
from scalesim.core import AgentId
from scalesim.scheduler.sequence import Sequence

FIRST = -math.inf
"""The priority of who was overtaken too often: before everybody, whatever theirs."""


class WaitingLine:
    """Those that wait for their first admission, lower priorities first. A sequence that others of
    a more urgent priority have overtaken ``max_skips`` times while it stood first in its own goes
    before all."""

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


class RequestQueue:
    """All that wait: ``line`` for their first admission, ``preempted`` (by rank) for another."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self.line = WaitingLine(config.max_skips)
        self.preempted: list[Sequence] = []

    def __len__(self) -> int:
        return len(self.line) + len(self.preempted)

    def clear(self) -> None:
        self.line = WaitingLine(self._config.max_skips)
        self.preempted.clear()

    def requeue(self, sequence: Sequence) -> None:
        """``sequence`` was admitted before."""
        self.preempted.append(sequence)
        self.preempted.sort(key=rank)

    def discard(self, sequence: Sequence) -> None:
        self.line.discard(sequence)
        if sequence in self.preempted:
            self.preempted.remove(sequence)

    def next(self, is_resident: Callable[[AgentId | None], bool]) -> Sequence:
        """By priority. Of equal ones preempted ones first, then the oldest; one whose state is on
        the device may overtake it."""
        line = self.line.first(max(1, self._config.lookahead_window))
        if self.preempted and (not line or self.preempted[0].priority <= line[0].priority):
            return self.preempted[0]
        head = line[0]
        if head.skipped >= self._config.max_skips or is_resident(head.agent):
            return head
        for sequence in line[1:]:
            if is_resident(sequence.agent):
                head.skipped += 1
                return sequence
        return head

    def admitted(self, sequence: Sequence) -> None:
        """``sequence`` leaves; whom it overtakes by its priority is counted."""
        if sequence in self.preempted:
            self.preempted.remove(sequence)
            return
        self.line.pass_over(sequence)
        for other in self.preempted:
            if other.priority > sequence.priority:
                overtake(other, self._config.max_skips)
        self.preempted.sort(key=rank)

    def position_of(self, agent: AgentId) -> int | None:
        """How many go before the oldest request of ``agent`` that waits for its first admission;
        ``None`` if it has none. Of a long queue only the first few are told apart."""
        window = self._config.lookahead_window
        for position, sequence in enumerate(islice(self.line, window)):
            if sequence.agent == agent:
                return position + len(self.preempted)
        return window if len(self.line) > window else None


def rank(sequence: Sequence) -> tuple[float, int]:
    """The most urgent first, then the oldest."""
    return sequence.priority, sequence.admission
