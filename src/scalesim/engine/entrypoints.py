"""The calling surface of an engine: requests in, replies out, from threads and event loops.

What ``Engine`` inherits. Requests are checked by the intake, pass the gate, and are run by the
driver's loop; here is who waits for what.
"""

from __future__ import annotations

import asyncio
from asyncio import gather
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

from scalesim.checks import flag, instance, reading, refuse
from scalesim.core import Floats, Pooling
from scalesim.engine.loop import EngineLoop
from scalesim.engine.parts import EngineParts
from scalesim.engine.progress import Progress, Show, shown
from scalesim.engine.thread import EngineThread
from scalesim.engine.tickets import Desk
from scalesim.errors import EngineClosedError, RequestError
from scalesim.requests.adapter_registry import AdapterRegistry
from scalesim.requests.call import Call, Ended, Latch
from scalesim.requests.choose import By, Choice, Option, checked_options, choice_of
from scalesim.requests.embed import embedding_requests, stacked
from scalesim.requests.limiter import RequestLimiter
from scalesim.requests.prepare import Intake
from scalesim.requests.prompt import Prompt
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.requests.stream import AsyncReplyStream, Mailbox, Reader, ReplyStream

_LOOK_S = 1.0  # how often a waiting thread lets Ctrl-C in
_SHOW_S = 0.1  # how often it shows its progress


class Entrypoints:
    """Runs requests, one or many, and waits for them, reads along, or does neither.

    Calls raise ``RequestError``, ``PromptTooLongError``, ``UnknownAgentError`` or ``AdapterError``
    before anything runs; ``EngineFullError`` or a wait where too many requests are open;
    ``RequestTimeoutError``, ``NumericalError`` or ``EngineClosedError`` later.
    """

    parts: EngineParts
    adapters: AdapterRegistry
    _loop: EngineLoop
    _driver: EngineThread
    _intake: Intake
    _gate: RequestLimiter
    _desk: Desk

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
        calls = await self._prepare_async(request)
        loop = asyncio.get_running_loop()
        ends = [Ended(loop) for _ in calls]
        for call, end in zip(calls, ends, strict=True):
            call.waiter = end
        self._driver.start_thread()
        ticket = self._desk.ticket(calls)
        try:
            self._enter(calls)
            for end in ends:
                await end.future
            ticket.keep()
        except BaseException:  # by whatever way it is left, the collector's included
            ticket.close()
            raise
        return reply_of(calls)

    def stream(self, request: Request) -> ReplyStream:
        """Run one request and read along: ``for piece in engine.stream(request)``.

        It runs from now on. Whoever stops reading cancels it.
        """
        call = self._prepare_one(request)
        self._driver.start_thread()
        return ReplyStream(self._begun(call, None))

    def stream_async(self, request: Request) -> AsyncReplyStream:
        """``stream`` for ``async for`` in the running event loop; it is checked, and runs, from the
        first read on."""
        return AsyncReplyStream(partial(self._begin, request))

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
        ticket = self._desk.ticket([call])
        try:
            self._enter(ticket.calls, waits=False)
            ticket.keep()
        except BaseException:
            ticket.close()
            raise
        return call

    def cancel(self, call: Call) -> None:
        """End a call; its pages are free within two steps. No effect on one that has ended. Raises
        ``RequestError`` for what is no call of this engine."""
        instance("call", call, Call, "submit() gives one")
        if call.model is not self.parts.model:
            raise RequestError("this call is another engine's; cancel it there")
        self._driver.post(partial(self._loop.abandon, [call]))

    # -- steps of the above -------------------------------------------------------------------

    def _prepare_one(self, request: Request) -> Call:
        self._driver.check_open()
        call = self._intake.prepare(request)
        _check_one(call)
        self._intake.compile([call])
        return call

    def _prepare(self, request: Request) -> list[Call]:
        self._driver.check_open()
        return self._intake.compile(self._intake.prepare_samples(request))

    async def _prepare_async(self, request: Request) -> list[Call]:
        self._driver.check_open()
        return await self._compiled(self._intake.prepare_samples(request))

    async def _compiled(self, calls: list[Call]) -> list[Call]:
        """``calls``, whose structure is compiled on another thread, for it may take long. They are
        numbered before that, as their coroutines begin: a text must not hang on which is done
        first."""
        if not calls[0].request.params.is_structured:
            return self._intake.compile(calls)
        if not self._gate.refuses:
            self._number(calls)
        return await asyncio.to_thread(self._intake.compile, calls)

    def _number(self, calls: list[Call]) -> None:
        """Tell equal requests apart, each once: in the order in which they are handed in, whatever
        becomes of them then. What is refused before that does not count."""
        for call in calls:
            if call.number is not None:
                continue
            request, params = call.request, call.request.params
            keys, first = self._loop.keys, call.leader
            if first is not None:
                call.digest, call.number = first.digest, first.number
                continue
            call.digest, call.number = keys.prompt_digest(call.tokens, params), 0
            draws = params.temperature > 0.0 and params.max_tokens > 0
            if draws and params.seed is None:
                call.number = keys.number(
                    request.agent, call.digest, request.sample_index, call.owner
                )

    def _run(self, calls: list[Call], show: Show | None = None) -> None:
        """Until all ``calls`` have ended, so that Ctrl-C gets through; it cancels them."""
        latch = Latch(len(calls))
        for call in calls:
            call.waiter = latch
        self._driver.start_thread()
        ticket = self._desk.ticket(calls)
        try:
            self._enter(calls)
            while not latch.wait(_LOOK_S if show is None else _SHOW_S):
                self._driver.check_process()
                if show is not None:
                    show(len(calls) - latch.left)
            ticket.keep()
        except BaseException:
            ticket.close()
            raise
        if show is not None:
            show(len(calls))

    def _enter(self, calls: list[Call], *, waits: bool = True) -> None:
        """Hand in ``calls``; those that find no place wait in line, or are refused. Under a
        ticket: what is left halfway is undone."""
        self._stamp(calls)
        if self._gate.refuses or not waits:
            self._gate.take(calls)
        self._number(calls)
        for call in calls:
            self.adapters.hold(call)
        try:
            self._driver.post(lambda: self._loop.accept(calls))
        except EngineClosedError:
            self._loop.on_ended(calls)
            self._gate.leave(calls)
            raise

    def _stamp(self, calls: list[Call]) -> None:
        """The call begins, and so does its timeout."""
        now_s = self.parts.time_s()
        for call in calls:
            call.begins(now_s)

    async def _begin(self, request: Request) -> Reader:
        self._driver.check_open()
        call = self._intake.prepare(request)
        _check_one(call)
        await self._compiled([call])
        self._driver.start_thread()
        return self._begun(call, asyncio.get_running_loop())

    def _check_process(self) -> None:
        """For readers, who keep their engine by it."""
        self._driver.check_process()

    def _begun(self, call: Call, loop: asyncio.AbstractEventLoop | None) -> Reader:
        """Who reads ``call``, which is handed in."""
        call.waiter = call.mailbox = Mailbox(call, call.observer, loop)
        texts = self._intake.text_stream(call.request)
        reader = Reader(self._desk.ticket([call]), texts, self._check_process)
        try:
            self._enter(reader.ticket.calls)
        except BaseException:
            reader.close()
            raise
        return reader


def _check_one(call: Call) -> None:
    if (n := call.request.params.n) != 1:
        raise RequestError(
            f"n={n}: one sample at a time is submitted or streamed; send "
            "requests with sample_index 0 to n - 1, or use a call that waits"
        )


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
