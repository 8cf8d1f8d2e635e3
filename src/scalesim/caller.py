"""The calling surface of an engine: requests in, replies out, from threads and event loops.

What ``Engine`` inherits. Requests are checked by the intake, pass the gate, and are run by the
driver's loop; here is who waits for what.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from scalesim.adapters import AdapterRegistry
from scalesim.calls import Answer, Call, Latch
from scalesim.driver import Driver
from scalesim.errors import EngineClosedError, RequestCancelledError, RequestTimeoutError
from scalesim.gate import Gate
from scalesim.intake import Intake
from scalesim.loop import Loop, Parts
from scalesim.progress import Progress, Show, shown
from scalesim.requests import Reply, Request
from scalesim.streams import AsyncStream, Mailbox, Reader, Stream

_LOOK_S = 1.0  # how often a waiting thread lets Ctrl-C in
_SHOW_S = 0.1  # how often it shows its progress


class Caller:
    """Runs requests, one or many, and waits for them, reads along, or does neither.

    Calls raise ``RequestError``, ``PromptTooLongError``, ``UnknownAgentError`` or ``AdapterError``
    before anything runs; ``EngineFullError`` or a wait where too many requests are open;
    ``RequestTimeoutError``, ``NumericalError`` or ``EngineClosedError`` later.
    """

    parts: Parts
    adapters: AdapterRegistry
    _loop: Loop
    _driver: Driver
    _intake: Intake
    _gate: Gate

    def run(
        self,
        requests: Iterable[Request],
        *,
        return_exceptions: bool = False,
        progress: Progress = False,
    ) -> list[Reply | Exception]:
        """Run ``requests`` as one batch and wait; replies in order.

        One request's failure ends no other. Afterwards the first error is raised, or stands in its
        place with ``return_exceptions``. ``progress``: show how many have ended, with ``"rich"``
        (or ``True``), ``"tqdm"``, or a function of (ended, all).
        """
        calls: list[Call | Exception] = []
        for request in requests:
            try:
                calls.append(self._prepare(request))
            except Exception as error:
                if not return_exceptions:
                    raise
                calls.append(error)
        opened = [call for call in calls if isinstance(call, Call)]
        with shown(progress, len(opened)) as show:
            self._run(opened, show)
        return [_outcome(call, return_exceptions) for call in calls]

    def generate(self, request: Request) -> Reply:
        """Run one request and wait."""
        call = self._prepare(request)
        self._run([call])
        return call.result()

    async def generate_async(self, request: Request) -> Reply:
        """Run one request from any event loop. Cancelling the task cancels the request."""
        call = self._prepare(request)
        call.waiter = answer = Answer(asyncio.get_running_loop())
        await self._enter_async(call)
        try:
            return await answer.future
        except asyncio.CancelledError:
            with suppress(EngineClosedError):
                self.cancel(call)
            raise

    def stream(self, request: Request) -> Stream:
        """Run one request and read along: ``for piece in engine.stream(request)``.

        It runs from now on. Whoever stops reading cancels it.
        """
        reader = self._reader(request, None)
        self._driver.start_thread()
        self._enter([reader.call])
        return Stream(reader)

    def stream_async(self, request: Request) -> AsyncStream:
        """``stream`` for ``async for`` in the running event loop; it runs from the first read
        on."""
        reader = self._reader(request, asyncio.get_running_loop())
        return AsyncStream(reader, lambda: self._enter_async(reader.call))

    def submit(self, request: Request) -> Call:
        """Hand in a request without waiting, for those who drive ``step()``: poll ``call.done``.
        Raises ``EngineFullError`` where too many are open."""
        call = self._prepare(request)
        self._stamp([call])
        self._gate.take()
        self._post([call])
        return call

    def cancel(self, call: Call) -> None:
        """End a call; its pages are free within two steps. No effect on one that has ended."""
        self._driver.post(self._cancelling(call))

    # -- steps of the above -------------------------------------------------------------------

    def _prepare(self, request: Request) -> Call:
        self._driver.check_open()
        return self._intake.prepare(request)

    def _run(self, calls: list[Call], show: Show | None = None) -> None:
        """Until all ``calls`` have ended, so that Ctrl-C gets through; it cancels them."""
        latch = Latch(len(calls))
        for call in calls:
            call.waiter = latch
        self._driver.start_thread()
        try:
            self._enter(calls)
            while not latch.wait(_LOOK_S if show is None else _SHOW_S):
                if show is not None:
                    show(len(calls) - latch.left)
        except BaseException:
            with suppress(EngineClosedError):
                for call in calls:
                    self.cancel(call)
            raise
        if show is not None:
            show(len(calls))

    def _enter(self, calls: list[Call]) -> None:
        """Hand in ``calls``, as many at a time as there are places; those whose time is over while
        they wait fail alone."""
        self._stamp(calls)
        while calls:
            first = min(calls, key=lambda call: call.deadline_s or math.inf)
            try:
                count = self._gate.wait(len(calls), self._left_s(first))
            except RequestTimeoutError as error:
                late = [call for call in calls if self._left_s(call) == 0.0]
                calls = [call for call in calls if call not in late]
                self._driver.post(partial(self._loop.refuse, late, error))
                continue
            self._post(calls[:count])
            calls = calls[count:]

    async def _enter_async(self, call: Call) -> None:
        self._driver.start_thread()
        self._stamp([call])
        await self._gate.wait_async(self._left_s(call))
        self._post([call])

    def _stamp(self, calls: list[Call]) -> None:
        """The call begins, and so does its timeout."""
        now_s = self.parts.time_s()
        for call in calls:
            call.begins(now_s)

    def _left_s(self, call: Call) -> float | None:
        if call.deadline_s is None:
            return None
        return max(0.0, call.deadline_s - self.parts.time_s())

    def _post(self, calls: list[Call]) -> None:
        """Hand in calls that have their places."""
        for call in calls:
            call.has_place = True
            if call.adapter is not None:
                self.adapters.hold(call.adapter)
        try:
            self._driver.post(lambda: self._loop.accept(calls))
        except EngineClosedError:
            self._loop.on_ended(calls)
            raise

    def _reader(self, request: Request, loop: asyncio.AbstractEventLoop | None) -> Reader:
        call = self._prepare(request)
        call.waiter = call.mailbox = Mailbox(call, call.observer, loop)
        deltas = self._intake.text_stream(request)
        return Reader(call, deltas, self._abandon)

    def _abandon(self, call: Call) -> None:
        self._driver.post_quietly(self._cancelling(call))

    def _cancelling(self, call: Call) -> Callable[[], None]:
        error = RequestCancelledError("the request was cancelled")
        return lambda: self._loop.end_call(call, "cancelled", error)


def release(gate: Gate, adapters: AdapterRegistry) -> Callable[[list[Call]], None]:
    """What happens to ended calls: they give back their places and their adapters."""

    def ended(calls: list[Call]) -> None:
        placed = [call for call in calls if call.has_place]
        for call in placed:
            if call.adapter is not None:
                adapters.close(call.adapter)
        gate.give_back(len(placed))

    return ended


def _outcome(call: Call | Exception, keep: bool) -> Reply | Exception:
    if isinstance(call, Exception):
        return call
    try:
        return call.result()
    except Exception as error:
        if not keep:
            raise
        return error
