"""The calling surface of an engine: requests in, replies out, from threads and event loops.

What ``Engine`` inherits. Requests are checked by the intake and run by the loop; here callers hand
them in, wait, and leave.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

from scalesim.checks import flag, instance, reading, refuse, unknown_option
from scalesim.engine.inbox import Inbox
from scalesim.engine.loop import EngineLoop
from scalesim.engine.parts import EngineParts
from scalesim.engine.progress import Progress, Show, shown
from scalesim.engine.thread import EngineThread
from scalesim.errors import EngineClosedError, RequestError
from scalesim.requests.adapter_registry import AdapterRegistry
from scalesim.requests.call import Call, reply_of
from scalesim.requests.limiter import RequestLimiter
from scalesim.requests.prepare import Intake
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.requests.stream import AsyncReplyStream, Mailbox, Reader, ReplyStream
from scalesim.requests.tickets import LOOK_S, Bell, Desk, Latch, LoopBell
from scalesim.sampling.params import SamplingParams

_SHOW_S = 0.1  # how often ``run`` shows its progress
_PARAMS = frozenset(field.name for field in fields(SamplingParams))
_OPTIONS = frozenset(field.name for field in fields(Request)) - {"prompt", "agent", "params"}


class Entrypoints:
    """Runs requests, one or many, and waits for them, reads along, or does neither.

    Calls raise ``RequestError``, ``PromptTooLongError``, ``UnknownAgentError`` or ``AdapterError``
    before anything runs; ``EngineFullError`` or a wait where too many requests are open;
    ``RequestTimeoutError``, ``NumericalError`` or ``EngineClosedError`` later.
    """

    parts: EngineParts
    adapters: AdapterRegistry
    _loop: EngineLoop
    _inbox: Inbox
    _thread: EngineThread
    _intake: Intake
    _limiter: RequestLimiter
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
            asked = iter(requests)
        for request in asked:
            try:
                calls.append(self._prepare(request))
            except Exception as error:
                if not keep:
                    raise
                calls.append(error)
        open_calls = [call for opened in calls if isinstance(opened, list) for call in opened]
        with shown(progress, len(open_calls)) as show:
            self._run(open_calls, show)
        return [_outcome(call, keep) for call in calls]

    def generate(self, request: Request) -> Reply:
        """Run one request and wait."""
        calls = self._prepare(request)
        self._run(calls)
        return reply_of(calls)

    async def generate_async(self, request: Request) -> Reply:
        """Run one request from any event loop. Cancelling the task cancels the request."""
        self._inbox.check_open()
        calls = await self._compiled(self._intake.prepare_samples(request))
        bell = LoopBell()
        for call in calls:
            call.waiter = bell
        self._thread.start_thread()
        with self._desk.ticket(calls):  # by whatever way it is left, the collector's included
            self._enter(calls)
            await bell.until_ended(calls)
        return reply_of(calls)

    def stream(self, request: Request) -> ReplyStream:
        """Run one request and read along: ``for piece in engine.stream(request)``.

        It runs from now on. Whoever stops reading cancels it.
        """
        call = self._prepare_one(request)
        self._thread.start_thread()
        return ReplyStream(self._begun(call, Bell()))

    def stream_async(self, request: Request) -> AsyncReplyStream:
        """``stream`` for ``async for`` in the running event loop; it is checked, and runs, from the
        first read on."""
        return AsyncReplyStream(partial(self._begin, request))

    def submit(self, request: Request) -> Call:
        """Hand in a request without waiting, for those who drive ``step()``: poll ``call.done``.
        Of one sample: for more, submit requests that differ in ``sample_index``. Raises
        ``EngineFullError`` where too many are open."""
        call = self._prepare_one(request)
        with self._desk.ticket([call]) as ticket:
            self._enter(ticket.calls, waits=False)
        return call

    def cancel(self, call: Call) -> None:
        """End a call; its pages are free within two steps. No effect on one that has ended. Raises
        ``RequestError`` for what is no call of this engine."""
        instance("call", call, Call, "submit() gives one")
        if call.model is not self.parts.model:
            raise RequestError("this call is another engine's; cancel it there")
        self._inbox.post(partial(self._loop.calls.abandon, [call]))

    def sampling(self, **params: Any) -> SamplingParams:
        """``SamplingParams`` of these fields; what is not given is as the model's
        ``generation_config.json`` says, where ``EngineConfig.generation_config`` lets it. Agents'
        calls go through this; a ``Request`` of one's own has the parameters that it is given.
        Raises ``RequestError`` for a field that there is not."""
        for name in params:
            if name not in _PARAMS:
                raise RequestError(unknown_option(name, _PARAMS | _OPTIONS, "option"))
        return SamplingParams(**{**self.parts.model.defaults, **params})

    # -- steps of the above -------------------------------------------------------------------

    def _prepare_one(self, request: Request) -> Call:
        self._inbox.check_open()
        [call] = self._intake.compile([self._intake.prepare_one(request)])
        return call

    def _prepare(self, request: Request) -> list[Call]:
        self._inbox.check_open()
        return self._intake.compile(self._intake.prepare_samples(request))

    async def _compiled(self, calls: list[Call]) -> list[Call]:
        """``calls``, whose structure is compiled on another thread, for it may take long. They are
        numbered before that, as their coroutines begin: a text must not hang on which is done
        first."""
        if not calls[0].request.params.is_structured:
            return self._intake.compile(calls)
        if not self._limiter.refuses:
            self._intake.number(calls)
        return await asyncio.to_thread(self._intake.compile, calls)

    def _run(self, calls: list[Call], show: Show | None = None) -> None:
        """Until all ``calls`` have ended, so that Ctrl-C gets through; it cancels them."""
        latch = Latch(calls)
        self._thread.start_thread()
        with self._desk.ticket(calls):
            self._enter(calls)
            while not latch.wait(LOOK_S if show is None else _SHOW_S):
                self._inbox.check_process()
                if show is not None:
                    show(len(calls) - latch.num_open)
        if show is not None:
            show(len(calls))

    def _enter(self, calls: list[Call], *, waits: bool = True) -> None:
        """Hand in ``calls``; those that find no place wait in line, or are refused. Under a
        ticket: what is left halfway is undone."""
        now_s = self.parts.time_s()
        for call in calls:
            call.begins(now_s)
        if self._limiter.refuses or not waits:
            self._limiter.take(calls)
        self._intake.number(calls)
        self.adapters.hold(calls)
        try:
            self._inbox.post(lambda: self._loop.accept(calls))
        except EngineClosedError:
            self.adapters.let_go(calls)
            self._limiter.leave(calls)
            raise

    async def _begin(self, request: Request) -> Reader:
        self._inbox.check_open()
        [call] = await self._compiled([self._intake.prepare_one(request)])
        self._thread.start_thread()
        return self._begun(call, LoopBell())

    def _begun(self, call: Call, bell: Bell | LoopBell) -> Reader:
        """The reader of ``call``, which is handed in."""
        mailbox = Mailbox(call, bell, self._loop.calls.announce)
        ticket, text = self._desk.ticket([call]), self._intake.text_stream(call.request)
        reader = Reader(ticket, mailbox, text, self._check_process)
        try:
            self._enter(ticket.calls)
        except BaseException:
            reader.close()
            raise
        return reader

    def _check_process(self) -> None:
        """For readers, who keep their engine by it."""
        self._inbox.check_process()


def _outcome(calls: list[Call] | Exception, keep: bool) -> Reply | Exception:
    if isinstance(calls, Exception):
        return calls
    try:
        return reply_of(calls)
    except Exception as error:
        if not keep:
            raise
        return error
