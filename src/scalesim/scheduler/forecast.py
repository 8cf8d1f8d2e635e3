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

MAX_READ_AHEAD = 256  # requests, each of which the planner looks at in every iteration


def num_read_ahead(queue: RequestQueue, memory: MemoryManager) -> int:
    """For how many requests in line, in the order of service, the disk may read ahead: as many as
    the first in line would be in the pages that ``memory`` has for that."""
    first, num_pages = next(iter(queue.line), None), memory.read_ahead_pages
    if first is None or not num_pages:
        return 0
    num_blocks = -(-len(first.tokens) // memory.block_size_of(first.attachments))
    return min(MAX_READ_AHEAD, num_pages // num_blocks)


class QueueForecast:
    """The forecast as of when it is made. In steps, if all running sequences take their full
    length. ``upcoming`` has the position of each agent's oldest request in the queue, as far as
    the queue tells positions apart."""

    def __init__(self, slots: Slots, queue: RequestQueue, memory: MemoryManager) -> None:
        self._slots = slots
        self.num_waiting = len(queue)
        upcoming = queue.upcoming(num_read_ahead(queue, memory))
        self._num_seen = len(upcoming)
        self.upcoming: dict[AgentId, int] = {}
        for position, sequence in enumerate(upcoming):
            if sequence.agent is not None:
                self.upcoming.setdefault(sequence.agent, position)

    @property
    def has_more(self) -> bool:
        return self.num_waiting > self._num_seen

    @property
    def waits_for_pages(self) -> bool:
        return self._slots.num_free > 0 and self.num_waiting > 0

    def starts_in(self, agent: AgentId) -> float | None:
        """Steps until the oldest waiting request of ``agent`` can start; ``None`` if there is
        none. Whoever is not among the upcoming is taken to come right behind them."""
        position = self.upcoming.get(agent, self._num_seen if self.has_more else None)
        return None if position is None else self._frees_in(position)

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
