"""The calling surface of an engine: requests in, replies out, from threads and event loops.

What ``Engine`` inherits. Requests are checked by the intake, run by the driver's loop; here is who
waits for what.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from scalesim.adapters import AdapterRegistry
from scalesim.calls import Call, Latch
from scalesim.driver import Driver
from scalesim.errors import EngineClosedError, RequestCancelledError, RequestError
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
        calls: list[list[Call] | Exception] = []
        for request in requests:
            try:
                calls.append(self._prepare(request))
            except Exception as error:
                if not return_exceptions:
                    raise
                calls.append(error)
        opened = [call for each in calls if isinstance(each, list) for call in each]
        latch = Latch(len(opened))
        self._driver.start_thread()
        for call in opened:
            call.latch = latch
        self._submit(opened)
        self._await(latch, opened)
        return [_outcome(call, return_exceptions) for call in calls]

    def generate(self, request: Request) -> Reply:
        """Run one request and wait."""
        calls = self._prepare(request)
        latch = Latch(len(calls))
        for call in calls:
            call.latch = latch
        self._driver.start_thread()
        self._submit(calls)
        self._await(latch, calls)
        return reply_of(calls)

    async def generate_async(self, request: Request) -> Reply:
        """Run one request from any event loop. Cancelling the task cancels the request."""
        calls = self._prepare(request)
        loop = asyncio.get_running_loop()
        for call in calls:
            call.loop, call.future = loop, loop.create_future()
        self._driver.start_thread()
        self._submit(calls)
        try:
            for call in calls:
                assert call.future is not None
                await asyncio.wait([call.future])
        except asyncio.CancelledError:
            with suppress(EngineClosedError):
                for call in calls:
                    self.cancel(call)
            raise
        return reply_of(calls)

    def submit(self, request: Request) -> Call:
        """Hand in a request without waiting, for those who drive ``step()``: poll ``call.done``.
        Of one sample: for more, submit requests that differ in ``sample_index``."""
        if request.params.n != 1:
            raise RequestError(
                f"n={request.params.n}: submit() hands in one sample; submit n requests with "
                "sample_index 0 to n - 1, or use a call that waits"
            )
        [call] = self._prepare(request)
        self._submit([call])
        return call

    def cancel(self, call: Call) -> None:
        """End a call; its pages are free within two steps. No effect on one that has ended."""
        error = RequestCancelledError("the request was cancelled")
        self._driver.post(lambda: self._loop.end_call(call, "cancelled", error))

    def _prepare(self, request: Request) -> list[Call]:
        self._driver.check_open()
        return self._intake.prepare_samples(request)

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


def reply_of(calls: list[Call]) -> Reply:
    """The reply of a request's samples. Raises the first error among them."""
    replies = [call.result() for call in calls]
    return replies[0] if len(calls) == 1 else replace(replies[0], others=tuple(replies[1:]))


def _outcome(calls: list[Call] | Exception, keep: bool) -> Reply | Exception:
    if isinstance(calls, Exception):
        return calls
    try:
        return reply_of(calls)
    except Exception as error:
        if not keep:
            raise
        return error
