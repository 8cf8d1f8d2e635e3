"""The calling surface of an engine: requests in, replies out, from threads and event loops.

What ``Engine`` inherits. Requests are checked by the intake, run by the driver's loop; here is who
waits for what.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from scalesim.adapters import AdapterRegistry
from scalesim.calls import Call, Latch
from scalesim.driver import Driver
from scalesim.errors import EngineClosedError, RequestCancelledError
from scalesim.intake import Intake
from scalesim.loop import Loop, Parts
from scalesim.requests import Reply, Request


class Caller:
    """Runs requests, one or many, and waits for them or not."""

    parts: Parts
    adapters: AdapterRegistry
    _loop: Loop
    _driver: Driver
    _intake: Intake

    def run(
        self, requests: Iterable[Request], *, return_exceptions: bool = False
    ) -> list[Reply | Exception]:
        """Run ``requests`` as one batch and wait; replies in order.

        One request's failure ends no other. Afterwards the first error is raised, or stands in its
        place with ``return_exceptions``.
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
        latch = Latch(len(opened))
        self._driver.start_thread()
        for call in opened:
            call.latch = latch
        self._submit(opened)
        self._await(latch, opened)
        return [_outcome(call, return_exceptions) for call in calls]

    def generate(self, request: Request) -> Reply:
        """Run one request and wait."""
        call = self._prepare(request)
        call.latch = Latch(1)
        self._driver.start_thread()
        self._submit([call])
        self._await(call.latch, [call])
        return call.result()

    async def generate_async(self, request: Request) -> Reply:
        """Run one request from any event loop. Cancelling the task cancels the request."""
        call = self._prepare(request)
        call.loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = call.loop.create_future()
        call.future = future
        self._driver.start_thread()
        self._submit([call])
        try:
            return await future
        except asyncio.CancelledError:
            with suppress(EngineClosedError):
                self.cancel(call)
            raise

    def submit(self, request: Request) -> Call:
        """Hand in a request without waiting, for those who drive ``step()``: poll ``call.done``."""
        call = self._prepare(request)
        self._submit([call])
        return call

    def cancel(self, call: Call) -> None:
        """End a call; its pages are free within two steps. No effect on one that has ended."""
        error = RequestCancelledError("the request was cancelled")
        self._driver.post(lambda: self._loop.end_call(call, "cancelled", error))

    def _prepare(self, request: Request) -> Call:
        self._driver.check_open()
        return self._intake.prepare(request)

    def _submit(self, calls: list[Call]) -> None:
        now_s = self.parts.time_s()
        for call in calls:
            call.submitted_s = now_s
            if call.adapter is not None:
                self.adapters.hold(call.adapter)
        self._driver.post(lambda: self._loop.accept(calls))

    def _await(self, latch: Latch, calls: list[Call]) -> None:
        """Wait, so that Ctrl-C gets through; it cancels what was waited for."""
        try:
            while not latch.wait(1.0):
                pass
        except BaseException:
            with suppress(EngineClosedError):
                for call in calls:
                    self.cancel(call)
            raise


def _outcome(call: Call | Exception, keep: bool) -> Reply | Exception:
    if isinstance(call, Exception):
        return call
    try:
        return call.result()
    except Exception as error:
        if not keep:
            raise
        return error
