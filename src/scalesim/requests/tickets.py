"""Tickets: how callers wait for calls, and how the calls of a lost caller are cancelled.

A waiting caller holds a ticket; calls without a ticket are cancelled. A caller may be left by an
error, by cancelling its task, by the garbage collector, or by Ctrl-C between any two instructions.
In each case everything that the caller began must end: the calls, their places at the limiter, the
adapters that they use. So the ticket is made first, and a single command in the loop's inbox undoes
as much as was done by then. The caller posts the command itself. If the caller cannot, because a
second Ctrl-C struck just there, the death of the ticket posts the command: no line of Python runs
for that, so nothing can interrupt it.

Futures of ``concurrent.futures`` cannot replace tickets. A ``KeyboardInterrupt`` within the
``Condition`` of a future leaves it locked, and the engine's thread, which sets the result, waits
for ever. And futures cost more: a thread that waits for 10 000 futures spends 14 us of a processor
on each, a thread that waits at a latch 0.4 us; a task spends 70 us on ``asyncio.wrap_future``,
which wakes the event loop for every call, and 25 us on a bell, which is rung once for all calls
that ended in a step.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from scalesim.foreign import Foreign
from scalesim.requests.call import Call

LOOK_S = 1.0
"""Seconds after which a waiting thread wakes, so that Ctrl-C can end the wait."""
AT_ONCE = 16
"""Waiting tasks that an event loop wakes before it looks for what else has happened."""
Put = Callable[[Callable[[], object]], object]
"""``SimpleQueue.put`` of an inbox of commands."""


class Bell:
    """Wakes a thread that waits for it.

    The bell is a bare lock: waiting acquires the lock, ringing releases it. Waiting is a single
    instruction, so that an interrupt cannot leave a lock taken that the engine's thread needs, as
    can happen within an ``Event``. It also takes less time of the interpreter, for which the
    engine's thread waits meanwhile.
    """

    __slots__ = ("_shut",)
    loop: asyncio.AbstractEventLoop | None = None

    def __init__(self) -> None:
        self._shut = threading.Lock()
        self._shut.acquire()

    def ring(self) -> None:
        """Wake the waiting thread, or the next thread that waits. Several rings before that count
        as one. Rung by one thread at a time."""
        if self._shut.locked():
            self._shut.release()

    def wait(self, timeout_s: float = LOOK_S) -> bool:
        """Wait until the bell has been rung since the last wait. Returns False after ``timeout_s``
        seconds."""
        return self._shut.acquire(timeout=timeout_s)


class LoopBell:
    """Wakes a task that waits for it in the event loop ``loop``. A ring while no task waits is
    lost: a task checks first whether it needs to wait."""

    __slots__ = ("_future", "loop")

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        self._future: asyncio.Future[None] | None = None

    def ring(self) -> None:
        if self._future is not None:
            with suppress(asyncio.InvalidStateError):  # rung already, or cancelled
                self._future.set_result(None)

    def tell(self, call: Call) -> None:
        self.ring()

    async def wait(self) -> None:
        assert self.loop is not None
        self._future = self.loop.create_future()
        try:
            await self._future
        finally:
            self._future = None

    async def until_ended(self, calls: Iterable[Call]) -> None:
        for call in calls:
            while not call.done:
                await self.wait()


class Latch:
    """Wakes a thread when the last of ``calls`` has ended: once, for any number of calls."""

    loop: asyncio.AbstractEventLoop | None = None

    def __init__(self, calls: list[Call]) -> None:
        self.num_open = len(calls)
        self._bell = Bell()
        for call in calls:
            call.waiter = self

    def tell(self, call: Call) -> None:
        self.num_open -= 1
        if self.num_open == 0:
            self._bell.ring()

    def wait(self, timeout_s: float = LOOK_S) -> bool:
        """Wait until all calls have ended. Returns False after ``timeout_s`` seconds."""
        return self.num_open <= 0 or self._bell.wait(timeout_s)


class Ticket:
    """Held by the caller that waits for ``calls``. As a context manager, a ticket is closed if its
    block raises, and kept otherwise."""

    __slots__ = ("__weakref__", "_desk", "calls")

    def __init__(self, desk: Desk, calls: list[Call]) -> None:
        self._desk, self.calls = desk, calls

    def close(self) -> None:
        """Cancel the calls that have not ended, because their caller no longer waits."""
        self._desk.put(partial(self._desk.abandon, self.calls))
        self.keep()

    def keep(self) -> None:
        """Let the calls be: they have ended, or go on without a waiting caller."""
        self._desk.ties.pop(id(self.calls), None)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.keep()
        else:
            self.close()


class Desk:
    """Makes tickets. ``put`` posts a command to the loop's thread; ``abandon`` cancels calls
    there."""

    def __init__(self, put: Put, abandon: Callable[[list[Call]], None]) -> None:
        self.put, self.abandon = put, abandon
        self.ties: dict[int, weakref.ref[Ticket]] = {}  # by the ticket's list of calls

    def ticket(self, calls: list[Call]) -> Ticket:
        ticket = Ticket(self, calls)
        # ``put`` gets the dead reference as a second argument, which a SimpleQueue ignores
        dropped = partial(self.put, partial(self._dropped, calls))
        self.ties[id(calls)] = weakref.ref(ticket, dropped)
        return ticket

    def _dropped(self, calls: list[Call]) -> None:
        self.ties.pop(id(calls), None)
        self.abandon(calls)


def deliver(calls: list[Call]) -> None:
    """Tell the waiters of ``calls``, which are done. Waiting threads are told at once; each event
    loop gets one message for all of its tasks."""
    loops: dict[asyncio.AbstractEventLoop, list[Call]] = {}
    for call in calls:
        if call.waiter is None:
            continue
        if call.waiter.loop is None:
            call.waiter.tell(call)
        else:
            loops.setdefault(call.waiter.loop, []).append(call)
    for loop, told in loops.items():
        with Foreign():  # a loop that is closed, or a caller's own, must not keep others waiting
            loop.call_soon_threadsafe(_tell, told)


def _tell(calls: list[Call]) -> None:
    """Tell the waiters in their event loop. If Ctrl-C strikes here, the loop tells the remaining
    waiters when it goes on."""
    try:
        for _ in range(min(len(calls), AT_ONCE)):
            waiter = calls[-1].waiter
            if waiter is not None:
                waiter.tell(calls[-1])
            calls.pop()
    finally:
        if calls:
            asyncio.get_running_loop().call_soon(_tell, calls)
