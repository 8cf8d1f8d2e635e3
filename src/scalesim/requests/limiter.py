"""The request limiter: bounds the number of open requests.

A call without a place waits in line, or is refused. The calls that hold places are a set: a call
that leaves twice, or that never entered, changes nothing. Calls in line are let in on the loop's
thread, in order of arrival; their callers wait for the end of their calls as all callers do, so no
place is passed between two threads, where an interrupt could lose it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from scalesim.errors import EngineFullError
from scalesim.requests.call import Call


class RequestLimiter:
    """``limit`` places for open calls. If it ``refuses``, no call waits: calls take their places
    before they are handed in, or ``EngineFullError`` is raised."""

    def __init__(self, limit: int, *, refuse: bool = False) -> None:
        self.limit, self.refuses = limit, refuse
        self._held: set[Call] = set()
        self._line: deque[Call] = deque()  # calls that wait for a place; its first call is not done
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
        """Take a place for each of ``calls``, or none, from any thread. Raises
        ``EngineFullError``."""
        with self._lock:
            if not self._line and len(calls) <= self.num_free:
                self._held.update(calls)
                return
            num_open = len(self._held)
        raise EngineFullError(
            f"{num_open} requests are open and {len(calls)} more were handed in; at "
            f"most max_open_requests={self.limit} may be open: raise it, wait for some to end, "
            "or set when_full='wait' and use a call that waits"
        )

    def enter(self, calls: Iterable[Call]) -> list[Call]:
        """Return the calls that may run now: those of ``calls`` that took their places before, and
        as many calls of the line as there are places. The other ``calls`` join the line."""
        with self._lock:
            admitted: list[Call] = []
            for call in calls:
                if not call.done:
                    (admitted if call in self._held else self._line).append(call)
            while self.opens:
                call = self._line.popleft()
                if not call.done:
                    self._held.add(call)
                    admitted.append(call)
            return admitted

    def leave(self, calls: Iterable[Call]) -> None:
        """Free the places of ``calls``, which are done."""
        with self._lock:
            self._held.difference_update(calls)
            while self._line and self._line[0].done:  # others that are done leave in their turn
                self._line.popleft()
