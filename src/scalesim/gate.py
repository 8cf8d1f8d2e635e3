"""The gate: a bounded number of open requests. Who finds no place waits in line, or is refused.

Callers take places before they hand a request in; the engine's thread gives them back as requests
end. First come, first served.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Protocol

from scalesim.errors import EngineFullError, RequestTimeoutError


class _Ticket(Protocol):
    """Somebody in line, for up to ``count`` places."""

    count: int
    granted: int
    loop: asyncio.AbstractEventLoop | None

    def wake(self) -> None: ...


class _ThreadTicket:
    def __init__(self, count: int) -> None:
        self.count, self.granted = count, 0
        self.loop: asyncio.AbstractEventLoop | None = None
        self.event = threading.Event()

    def wake(self) -> None:
        self.event.set()


class _LoopTicket:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.count, self.granted = 1, 0
        self.loop: asyncio.AbstractEventLoop | None = loop
        self.future: asyncio.Future[None] = loop.create_future()

    def wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Gate:
    """``limit`` places. With ``refuse``, nobody waits: ``EngineFullError`` is raised instead."""

    def __init__(self, limit: int, *, refuse: bool = False) -> None:
        self.limit, self._refuse = limit, refuse
        self._free = limit
        self._line: deque[_Ticket] = deque()
        self._lock = threading.Lock()

    @property
    def refuses(self) -> bool:
        """Whether nobody waits here."""
        return self._refuse

    @property
    def num_free(self) -> int:
        return self._free

    def take(self, count: int = 1) -> None:
        """``count`` places now. Raises ``EngineFullError``."""
        if not self._take(count, count):
            raise EngineFullError(
                f"{self.limit - self._free} requests are open and {count} more were handed in; at "
                f"most max_open_requests={self.limit} may be open: raise it, wait for some to end, "
                "or set when_full='wait' and use a call that waits"
            )

    def wait(self, count: int, timeout_s: float | None = None) -> int:
        """1 to ``count`` places, as soon as there are any. Raises ``RequestTimeoutError``."""
        if self._refuse:
            self.take(count)
            return count
        if granted := self._take(1, count):
            return granted
        ticket = _ThreadTicket(count)
        self._queue(ticket)
        try:
            while not ticket.event.wait(1.0 if timeout_s is None else timeout_s):  # lets Ctrl-C in
                if timeout_s is not None:
                    raise self._too_late(timeout_s)
        except BaseException:
            self._leave(ticket)
            raise
        return ticket.granted

    async def wait_async(self, timeout_s: float | None = None) -> None:
        """One place, as soon as there is one. Raises ``RequestTimeoutError``."""
        if self._refuse:
            self.take()
            return
        if self._take(1, 1):
            return
        loop = asyncio.get_running_loop()
        ticket = _LoopTicket(loop)
        self._queue(ticket)
        timer = None
        if timeout_s is not None:
            timer = loop.call_later(timeout_s, ticket.fail, self._too_late(timeout_s))
        try:
            await ticket.future
        except BaseException:
            self._leave(ticket)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def give_back(self, count: int) -> None:
        """``count`` places are free again: to those in line first."""
        with self._lock:
            self._free += count
            woken = self._serve()
        loops: dict[asyncio.AbstractEventLoop, list[_Ticket]] = {}
        for ticket in woken:
            if ticket.loop is None:
                ticket.wake()
            else:
                loops.setdefault(ticket.loop, []).append(ticket)
        for loop, tickets in loops.items():
            try:
                loop.call_soon_threadsafe(_wake, tickets)
            except RuntimeError:  # the loop was closed with its tasks; others may go in
                self.give_back(sum(ticket.granted for ticket in tickets))

    def _take(self, least: int, most: int) -> int:
        with self._lock:
            if self._line or self._free < least:
                return 0
            count = min(self._free, most)
            self._free -= count
            return count

    def _queue(self, ticket: _Ticket) -> None:
        with self._lock:
            self._line.append(ticket)
        self.give_back(0)  # a place may have been given back since

    def _serve(self) -> list[_Ticket]:
        woken = []
        while self._free and self._line:
            ticket = self._line.popleft()
            ticket.granted = min(self._free, ticket.count)
            self._free -= ticket.granted
            woken.append(ticket)
        return woken

    def _leave(self, ticket: _Ticket) -> None:
        with self._lock:
            if not ticket.granted:
                self._line.remove(ticket)
        self.give_back(ticket.granted)

    def _too_late(self, timeout_s: float) -> RequestTimeoutError:
        return RequestTimeoutError(
            f"{self.limit} requests were open (max_open_requests) until the request's time was "
            f"over, {timeout_s:.3g} s after it came to wait"
        )


def _wake(tickets: list[_Ticket]) -> None:
    for ticket in tickets:
        ticket.wake()
