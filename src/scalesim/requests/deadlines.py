"""Deadlines of open calls, as a heap whose size follows the number of open calls."""

from __future__ import annotations

import heapq
import itertools
import math

from scalesim.requests.call import Call

_SLACK = 32  # ended calls that may stay in the heap before it is cleared


class Deadlines:
    """A heap of the deadlines of open calls, used on the loop's thread.

    Ended calls are removed when they are half of the heap, so that a timeout of a day costs nothing
    after its call has ended.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Call]] = []
        self._numbers = itertools.count()
        self._num_ended = 0  # since the last removal; at least the ended calls in the heap

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, call: Call) -> None:
        """Note the deadline of ``call``, if it has a finite deadline."""
        if call.deadline_s is not None and call.deadline_s < math.inf:
            heapq.heappush(self._heap, (call.deadline_s, next(self._numbers), call))

    def ended(self, call: Call) -> None:
        """Note that ``call`` is done."""
        if call.deadline_s is None:
            return
        self._num_ended += 1
        if self._num_ended > max(_SLACK, len(self._heap) // 2):
            self._heap = [entry for entry in self._heap if not entry[2].done]
            heapq.heapify(self._heap)
            self._num_ended = 0

    def due(self, now_s: float) -> list[Call]:
        """Remove and return the open calls whose deadline has passed, the earliest first."""
        found = []
        while self._heap and self._heap[0][0] <= now_s:
            call = heapq.heappop(self._heap)[2]
            if not call.done:
                found.append(call)
        return found
