"""The request queue: which sequence is admitted next.

By priority, then preempted sequences before new ones, then by the longest expected work, then by
age. A sequence whose state is on the device goes before those that would wait for theirs. Nobody
waits for ever: ``WaitingLine`` counts by how many the oldest was overtaken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TypeAlias

from scalesim.config import SchedulerConfig
from scalesim.core import AgentId
from scalesim.scheduler.sequence import Sequence
from scalesim.scheduler.waiting_line import FIRST, WaitingLine

FirstResident: TypeAlias = "Callable[[Iterable[AgentId | None]], int | None]"
"""``MemoryManager.first_resident``."""


class RequestQueue:
    """All sequences that wait: in ``line`` for their first admission, among ``preempted`` (sorted
    by ``rank``) for another one."""

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
        """Add ``sequence``, which was admitted before."""
        self.preempted.append(sequence)
        self.preempted.sort(key=rank)

    def discard(self, sequence: Sequence) -> None:
        self.line.discard(sequence)
        if sequence in self.preempted:
            self.preempted.remove(sequence)

    def next(self, first_resident: FirstResident) -> Sequence:
        """The sequence to admit next; the queue must not be empty."""
        line = self.line.first(max(1, self._config.lookahead_window))
        if self.preempted and (not line or self.preempted[0].priority <= line[0].priority):
            return self.preempted[0]
        if line[0].priority == FIRST:
            return line[0]
        return line[first_resident([sequence.agent for sequence in line]) or 0]

    def admitted(self, sequence: Sequence) -> None:
        """``sequence`` leaves the queue; each sequence that it overtakes by its priority counts
        that."""
        if sequence in self.preempted:
            self.preempted.remove(sequence)
            return
        self.line.admitted(sequence)
        for other in self.preempted:
            if other.priority > sequence.priority:
                other.skipped += 1
                if other.skipped >= self._config.max_skips:
                    other.priority = FIRST
        self.preempted.sort(key=rank)

    def upcoming(self) -> list[Sequence]:
        """The sequences that are admitted next, in order: those that were preempted, and of the
        line as many as may run at once, or ``lookahead_window`` if that is more."""
        count = max(self._config.max_num_seqs, self._config.lookahead_window)
        return [*self.preempted, *islice(self.line, count)]


def rank(sequence: Sequence) -> tuple[float, int]:
    """The sort key of admitted sequences: the most urgent first, then the oldest."""
    return sequence.priority, sequence.admission
