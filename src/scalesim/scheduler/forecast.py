"""The queue forecast: how soon a waiting request can start.

Computed from what the running sequences may still generate. Memory's prefetcher asks.
"""

from __future__ import annotations

import numpy as np

from scalesim.core import AgentId, Int64s
from scalesim.scheduler.queue import RequestQueue
from scalesim.scheduler.slots import Slots


class QueueForecast:
    """In steps, if all running sequences take their full length."""

    def __init__(self, slots: Slots, queue: RequestQueue) -> None:
        self._slots, self._queue = slots, queue

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    @property
    def waits_for_pages(self) -> bool:
        return self._slots.num_free > 0 and len(self._queue) > 0

    def starts_in(self, agent: AgentId) -> float | None:
        """Steps until the oldest waiting request of ``agent`` can start; ``None`` if there is
        none."""
        position = self._queue.position_of(agent)
        return None if position is None else self._frees_in(position)

    def _frees_in(self, position: int) -> float:
        """Steps until there is a slot for the request that ``position`` others go before."""
        index = position - self._slots.num_free
        remaining = np.sort(self._remaining())
        if index < 0 or not len(remaining):  # nothing runs: requests wait for pages, not for slots
            return 0.0
        rounds, index = divmod(index, len(remaining))
        return float(remaining[index] + rounds * remaining.mean())

    def _remaining(self) -> Int64s:
        """Tokens that each running sequence may still generate."""
        slot_ids = list(self._slots.sequences)
        remaining: Int64s = self._slots.limit[slot_ids] - self._slots.known[slot_ids]
        return remaining
