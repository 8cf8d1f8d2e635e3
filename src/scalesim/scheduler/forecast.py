"""The queue forecast: who is served next, and how soon.

Computed from the order of the queue, and from what the running sequences may still generate.
Memory's prefetcher asks.
"""

from __future__ import annotations

from functools import cached_property

from scalesim.core import AgentId, Int64s
from scalesim.memory.manager import MemoryManager
from scalesim.scheduler.queue import RequestQueue
from scalesim.scheduler.slots import Slots


class QueueForecast:
    """The forecast as of when it is made. In steps, if all running sequences take their full
    length."""

    def __init__(self, slots: Slots, queue: RequestQueue, memory: MemoryManager) -> None:
        self._slots, self._queue, self._memory = slots, queue, memory
        self.num_waiting = len(queue)
        upcoming = queue.upcoming()
        self._num_seen = len(upcoming)
        agents = (sequence.agent for sequence in upcoming)
        self.upcoming = dict.fromkeys(agent for agent in agents if agent is not None)

    @property
    def has_more(self) -> bool:
        return self.num_waiting > self._num_seen

    @property
    def waits_for_pages(self) -> bool:
        return self._slots.num_free > 0 and self.num_waiting > 0

    def take_next(self, num_blocks: int) -> list[AgentId]:
        """The agents of the first requests in line that were not told before, as far as each of
        these takes as many blocks as the first, and all together ``num_blocks``."""
        line = self._queue.line
        if not num_blocks or not (first := line.first(1)):
            return []
        size = self._memory.block_size_of(first[0].attachments)
        taken = line.take_next(num_blocks // -(-len(first[0].tokens) // size))
        return [sequence.agent for sequence in taken if sequence.agent is not None]

    def starts_in(self, agent: AgentId) -> float | None:
        """Steps until a waiting request of ``agent`` can start; ``None`` if there is none. Where
        more wait than the upcoming, whoever has none is taken to come right behind these."""
        position = self._position_of(agent)
        if position is None and self.has_more:
            position = self._num_seen
        return None if position is None else self._frees_in(position)

    def _position_of(self, agent: AgentId) -> int | None:
        """How many waiting requests go before the first of ``agent``; ``None`` if it has none."""
        preempted = self._queue.preempted
        for position, sequence in enumerate(preempted):
            if sequence.agent == agent:
                return position
        in_line = self._queue.line.position_of(agent)
        return None if in_line is None else len(preempted) + in_line

    def _frees_in(self, position: int) -> float:
        """Steps until there is a slot for the request that ``position`` others go before."""
        index = position - self._slots.num_free
        remaining = self._remaining
        if index < 0 or not len(remaining):  # nothing runs: requests wait for pages, not for slots
            return 0.0
        rounds, index = divmod(index, len(remaining))
        return float(remaining[index] + rounds * remaining.mean())

    @cached_property
    def _remaining(self) -> Int64s:
        """Tokens that each running sequence may still generate, the fewest first."""
        slot_ids = list(self._slots.sequences)
        remaining: Int64s = self._slots.limit[slot_ids] - self._slots.known[slot_ids]
        remaining.sort()
        return remaining
