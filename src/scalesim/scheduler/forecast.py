"""What is known of the steps to come: from what the running sequences have left to generate, and
who waits.

Memory's planner asks: how soon can a waiting request start, and how many start at once?
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scalesim.core import AgentId
from scalesim.scheduler.queue import RequestQueue
from scalesim.scheduler.slots import Slots


class QueueForecast:
    """In steps, if all that run take their full length."""

    def __init__(self, slots: Slots, queue: RequestQueue) -> None:
        self._slots, self._queue = slots, queue
        self.begin_at_once = len(slots.sequences)

    def starts_in(self, agent: AgentId) -> float:
        """Until the oldest waiting request of ``agent`` can start; 0 if it has none."""
        position = self._queue.position_of(agent)
        return 0.0 if position is None else self._frees_in(position)

    def drains_in(self) -> float:
        """Until the last request has ended, if none is added."""
        num_left = self._left()
        if not len(num_left):
            return 0.0
        return float(num_left.max() + num_left.mean() * (len(self._queue) // len(num_left)))

    def _frees_in(self, position: int) -> float:
        """Until there is a slot for who has ``position`` others before it."""
        index = position - self._slots.num_free
        num_left = np.sort(self._left())
        if index < 0 or not len(num_left):  # nobody runs: pages are waited for, not slots
            return 0.0
        rounds, index = divmod(index, len(num_left))
        return float(num_left[index] + rounds * num_left.mean())

    def _left(self) -> npt.NDArray[np.int64]:
        """Tokens that each running sequence may still generate."""
        slot_ids = [sequence.slot for sequence in self._slots.entered()]
        num_left: npt.NDArray[np.int64] = self._slots.limit[slot_ids] - self._slots.known[slot_ids]
        return num_left
