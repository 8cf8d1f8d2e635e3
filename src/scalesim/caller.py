"""The calling surface of an engine: requests in, replies out, from threads and event loops.

What ``Engine`` inherits. Requests are checked by the intake, pass the gate, and are run by the
driver's loop; here is who waits for what.
"""

from __future__ import annotations

import asyncio
import math
from asyncio import gather
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

from scalesim.adapters import AdapterRegistry
from scalesim.calls import Call, Ended, Latch
from scalesim.checks import flag, instance, reading, refuse
from scalesim.choices import By, Choice, Option, checked_options, choice_of
from scalesim.core import Floats, Pooling
from scalesim.driver import Driver
from scalesim.embeddings import embedding_requests, stacked
from scalesim.errors import (
    EngineClosedError,
    RequestCancelledError,
    RequestError,
    RequestTimeoutError,
)
from scalesim.gate import Gate
from scalesim.intake import Intake
from scalesim.loop import Loop, Parts
from scalesim.progress import Progress, Show, shown
from scalesim.requests import Prompt, Reply, Request, check_kind
from scalesim.streams import AsyncStream, Mailbox, Reader, Stream

T = TypeVar("T")
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
        if not isinstance(requests, Iterable) or isinstance(requests, (str, bytes, Mapping)):
            refuse("requests", requests, "must be a list of Requests; generate() takes one")
        keep = flag("return_exceptions", return_exceptions)
        calls: list[list[Call] | Exception] = []
        with reading("requests"):
            each = iter(requests)
        for request in each:
            try:
                calls.append(self._prepare(request))
            except Exception as error:
                if not keep:
                    raise
                calls.append(error)
        opened = [call for each in calls if isinstance(each, list) for call in each]
        with shown(progress, len(opened)) as show:
            self._run(opened, show)
        return [_outcome(call, keep) for call in calls]

    def generate(self, request: Request) -> Reply:
        """Run one request and wait."""
        calls = self._prepare(request)
        self._run(calls)
        return reply_of(calls)

    async def generate_async(self, request: Request) -> Reply:
        """Run one request from any event loop. Cancelling the task cancels the request."""
        calls = await _off_the_loop(request, self._prepare)
        loop = asyncio.get_running_loop()
        ends = [Ended(loop) for _ in calls]
        try:
            for call, end in zip(calls, ends, strict=True):
                call.waiter = end
                await self._enter_async(call)
            for end in ends:
                await end.future
        except BaseException:  # by whatever way it is left, the collector's included
            for call in calls:
                self._abandon(call)
            raise
        return reply_of(calls)

    def stream(self, request: Request) -> Stream:
        """Run one request and read along: ``for piece in engine.stream(request)``.

        It runs from now on. Whoever stops reading cancels it.
        """
        reader = self._reader(self._prepare_one(request), None)
        self._driver.start_thread()
        stream = Stream(reader)  # before it is handed in: if Ctrl-C comes between, it is dropped
        self._enter([reader.call])
        return stream

    def stream_async(self, request: Request) -> AsyncStream:
        """``stream`` for ``async for`` in the running event loop; it is checked, and runs, from the
        first read on."""
        return AsyncStream(partial(self._begin, request))

    def choose(self, request: Request, options: Sequence[Option], *, by: By = "sum") -> Choice:
        """The likeliest of ``options`` as what follows the request's prompt, by the sum of its
        tokens' log-probabilities or their mean; waits. The prompt is computed once.

        Of the request, sampling parameters play no part. Raises ``RequestError`` for options that
        are empty.
        """
        options = checked_options(options, by)
        first, *rest = self._intake.prepare_choice(request, options)
        replies = [self.generate(first), *cast("list[Reply]", self.run(rest))]
        return choice_of(options, replies, by)

    async def choose_async(
        self, request: Request, options: Sequence[Option], *, by: By = "sum"
    ) -> Choice:
        """``choose`` among ``options`` from any event loop."""
        options = checked_options(options, by)
        first, *rest = self._intake.prepare_choice(request, options)
        replies = [await self.generate_async(first)]  # the others find the prompt in memory
        replies += await gather(*(self.generate_async(each) for each in rest))
        return choice_of(options, replies, by)

    def embed(
        self,
        prompts: Sequence[Prompt],
        *,
        pooling: Pooling = "last",
        normalize: bool = True,
        **options: Any,
    ) -> Floats:
        """``[len(prompts), hidden]`` fp32: the model's final hidden state of each prompt's last
        token, or the mean over its tokens; of length 1 with ``normalize``. Waits.

        Options are fields of ``Request``. Sentence embeddings need a model that was trained for
        them, and its own pooling.
        """
        flag("normalize", normalize)
        replies = self.run(embedding_requests(prompts, pooling, options))
        return stacked(cast("list[Reply]", replies), normalize)

    async def embed_async(
        self,
        prompts: Sequence[Prompt],
        *,
        pooling: Pooling = "last",
        normalize: bool = True,
        **options: Any,
    ) -> Floats:
        """``embed`` from any event loop: ``prompts``, ``pooling`` and ``normalize`` as there."""
        flag("normalize", normalize)
        requests = embedding_requests(prompts, pooling, options)
        return stacked(await gather(*map(self.generate_async, requests)), normalize)

    def submit(self, request: Request) -> Call:
        """Hand in a request without waiting, for those who drive ``step()``: poll ``call.done``.
        Of one sample: for more, submit requests that differ in ``sample_index``. Raises
        ``EngineFullError`` where too many are open."""
        call = self._prepare_one(request)
        self._stamp([call])
        self._gate.take()
        self._post([call])
        return call

    def cancel(self, call: Call) -> None:
        """End a call; its pages are free within two steps. No effect on one that has ended. Raises
        ``RequestError`` for what is no call of this engine."""
        instance("call", call, Call, "submit() gives one")
        if call.model is not self.parts.model:
            raise RequestError("this call is another engine's; cancel it there")
        self._driver.post(self._cancelling(call))

    # -- steps of the above -------------------------------------------------------------------

    def _prepare_one(self, request: Request) -> Call:
        self._driver.check_open()
        call = self._intake.prepare(request)
        if (n := call.request.params.n) != 1:
            raise RequestError(
                f"n={n}: one sample at a time is submitted or streamed; send "
                "requests with sample_index 0 to n - 1, or use a call that waits"
            )
        return call

    def _prepare(self, request: Request) -> list[Call]:
        self._driver.check_open()
        return self._intake.prepare_samples(request)

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
        first = min(calls, key=_deadline_s, default=None)
        while calls:
            try:
                left_s = None if first is None else self._left_s(first)
                count = self._gate.wait(len(calls), left_s)
            except RequestTimeoutError as error:
                now_s = self.parts.time_s()
                late = [call for call in calls if _deadline_s(call) <= now_s]
                calls = [call for call in calls if _deadline_s(call) > now_s]
                self._driver.post(partial(self._loop.refuse, late, error))
                first = min(calls, key=_deadline_s, default=None)
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

    async def _begin(self, request: Request) -> Reader:
        call = await _off_the_loop(request, self._prepare_one)
        reader = self._reader(call, asyncio.get_running_loop())
        try:
            await self._enter_async(call)
        except BaseException:
            reader.close()
            raise
        return reader

    def _reader(self, call: Call, loop: asyncio.AbstractEventLoop | None) -> Reader:
        call.waiter = call.mailbox = Mailbox(call, call.observer, loop)
        return Reader(call, self._intake.text_stream(call.request), self._abandon)

    def _abandon(self, call: Call) -> None:
        self._driver.post_quietly(self._cancelling(call))

    def _cancelling(self, call: Call) -> Callable[[], None]:
        error = RequestCancelledError("the request was cancelled")
        return lambda: self._loop.end_call(call, "cancelled", error)


async def _off_the_loop(request: Request, prepare: Callable[[Request], T]) -> T:
    """``prepare(request)``; on a thread if a structure is to be compiled, which may take long."""
    check_kind(request)
    if request.params.is_structured:
        return await asyncio.to_thread(prepare, request)
    return prepare(request)


def _deadline_s(call: Call) -> float:
    return math.inf if call.deadline_s is None else call.deadline_s


def release(gate: Gate, adapters: AdapterRegistry) -> Callable[[list[Call]], None]:
    """What happens to ended calls: they give back their places and their adapters."""

    def ended(calls: list[Call]) -> None:
        placed = [call for call in calls if call.has_place]
        for call in placed:
            if call.adapter is not None:
                adapters.close(call.adapter)
        gate.give_back(len(placed))

    return ended


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
