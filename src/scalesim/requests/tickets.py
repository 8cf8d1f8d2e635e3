"""How callers wait for calls, and how they are left.

A waiting caller holds a ticket; calls whose ticket is gone are cancelled. However a caller is left
(an error, a cancelled task, the collector, Ctrl-C between any two instructions), what it had begun
must end: the calls, their places at the limiter, the adapters that they use. So the ticket exists
before anything else does, and what is done about it is one command in the loop's inbox, which
undoes whatever of it has happened by then. A caller that can still act puts it there; for one that
cannot, because a second Ctrl-C struck just there, the ticket's death does. No line of Python runs
for that, so nothing can interrupt it.

Futures of ``concurrent.futures`` do not do this work. A ``KeyboardInterrupt`` inside one's
``Condition`` leaves it locked, and the engine's thread, which sets the result, waits for ever. And
they cost more: a thread that waits for 10 000 of them spends 14 us of a processor on each, one that
waits at a latch 0.4; a task spends 70 us on ``asyncio.wrap_future``, which wakes the event loop for
every call, and 25 on a bell, which is rung once for all calls that ended in a step.
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
"""How often a waiting thread lets Ctrl-C in."""
Put = Callable[[Callable[[], object]], object]
"""``SimpleQueue.put`` of an inbox of commands."""


class Bell:
    """A thread waits until another rings. A bare lock, which waiting takes and ringing gives back:
    to wait is one instruction, so nobody can be interrupted holding what the engine's thread
    needs, as within an ``Event``. And it costs a caller's thread less, which has the interpreter
    while the engine's waits for it."""

    __slots__ = ("_shut",)
    loop: asyncio.AbstractEventLoop | None = None

    def __init__(self) -> None:
        self._shut = threading.Lock()
        self._shut.acquire()

    def ring(self) -> None:
        """Rung again before somebody came to wait, it has been rung once. One thread at a time."""
        if self._shut.locked():
            self._shut.release()

    def wait(self, timeout_s: float = LOOK_S) -> bool:
        """Whether it was rung since the last time, or is within ``timeout_s`` seconds."""
        return self._shut.acquire(timeout=timeout_s)


class LoopBell:
    """A task of event loop ``loop`` waits until it is rung there. Not remembered while nobody
    waits: look first whether what is waited for has come."""

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
    """Rings, for a thread, when the last of ``calls`` has ended: one wake-up, however many."""

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
        """Whether all have ended, within ``timeout_s`` seconds."""
        return self.num_open <= 0 or self._bell.wait(timeout_s)


class Ticket:
    """Held by whoever waits for ``calls``. As a context manager, it is kept by what ends well, and
    closed by what does not."""

    __slots__ = ("__weakref__", "_desk", "calls")

    def __init__(self, desk: Desk, calls: list[Call]) -> None:
        self._desk, self.calls = desk, calls

    def close(self) -> None:
        """Nobody waits any more: those of the calls that have not ended are cancelled."""
        self._desk.put(partial(self._desk.abandon, self.calls))
        self.keep()

    def keep(self) -> None:
        """The calls have ended, or may go on without anybody who waits."""
        self._desk.ties.pop(id(self.calls), None)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.keep()
        else:
            self.close()


class Desk:
    """Gives out tickets. ``abandon`` cancels calls, on the loop's thread."""

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
    """Tell the waiters of ``calls``, which are done: those of threads at once, the others in one
    message to each event loop."""
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
    """In their event loop. If Ctrl-C strikes here, the waiters that remain are told when the loop
    goes on."""
    try:
        while calls:
            waiter = calls[-1].waiter
            if waiter is not None:
                waiter.tell(calls[-1])
            calls.pop()
    except BaseException:
        asyncio.get_running_loop().call_soon(_tell, calls)
        raise
