"""The request limiter: bounds the open requests. A call without a place waits, or is refused.

A place is held by a call, not by a number that somebody must remember to give back: the calls with
places are a set, and leaving twice, or without ever having entered, changes nothing. Those in line
are let in on the loop's thread, in order of arrival; their callers wait for the call's end as any
other, so nothing is held between two threads that an interrupt could lose.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from scalesim.errors import EngineFullError
from scalesim.requests.call import Call


class RequestLimiter:
    """``limit`` places. ``refuses``: nobody waits; calls take their places before they are handed
    in, or ``EngineFullError`` is raised."""

    def __init__(self, limit: int, *, refuse: bool = False) -> None:
        self.limit, self.refuses = limit, refuse
        self._held: set[Call] = set()
        self._line: deque[Call] = deque()  # those that are done have left it
        self._lock = threading.Lock()

    @property
    def num_free(self) -> int:
        return self.limit - len(self._held)

    @property
    def opens(self) -> bool:
        """Whether there is a place for a call that waits in line."""
        return bool(self._line) and self.num_free > 0

    def calls(self) -> list[Call]:
        """All calls that hold a place or wait for one."""
        with self._lock:
            return [*self._held, *self._line]

    def take(self, calls: list[Call]) -> None:
        """A place for each of ``calls`` at once, from any thread. Raises ``EngineFullError``."""
        with self._lock:
            if not self._line and self._take(len(calls), len(calls)):
                self._held.update(calls)
                return
            num_open = len(self._held)
        raise EngineFullError(
            f"{num_open} requests are open and {len(calls)} more were handed in; at "
            f"most max_open_requests={self.limit} may be open: raise it, wait for some to end, "
            "or set when_full='wait' and use a call that waits"
        )

    def enter(self, calls: Iterable[Call]) -> list[Call]:
        """The calls that may go in now: those of ``calls`` that took their places before, and as
        many of the line as there are places. The other ``calls`` have joined the line."""
        with self._lock:
            admitted: list[Call] = []
            for call in calls:
                if not call.done:
                    (admitted if call in self._held else self._line).append(call)
            count = self._take(1, len(self._line)) if self._line else 0
            while count and self._line:
                call = self._line.popleft()
                if not call.done:
                    self._held.add(call)
                    admitted.append(call)
                    count -= 1
            return admitted

    def leave(self, calls: Iterable[Call]) -> None:
        """``calls`` are done: their places are free, and they leave the line."""
        with self._lock:
            self._held.difference_update(calls)
            while self._line and self._line[0].done:  # the others leave when it is their turn
                self._line.popleft()

    def _take(self, least: int, max_free: int) -> int:
        """How many of ``least`` to ``max_free`` places are there to take; 0 if fewer."""
        free = self.limit - len(self._held)
        return 0 if free < least else min(free, max_free)
