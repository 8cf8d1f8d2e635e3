"""Streaming and async entrypoints: replies read piece by piece, and calls made from event loops.

A caller in an event loop never blocks: checks are quick, and structures are compiled on another
thread. However a caller leaves, its calls are cancelled (``requests.tickets``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial

from scalesim.checks import flag
from scalesim.engine.entrypoints import Entrypoints, calls_of, outcome
from scalesim.requests.call import Call, reply_of
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.requests.stream import AsyncReplyStream, Mailbox, Reader, ReplyStream
from scalesim.requests.tickets import Bell, LoopBell


class StreamingEntrypoints(Entrypoints):
    """Runs requests for readers that follow a reply as it comes, and for tasks of event loops."""

    async def generate_async(self, request: Request) -> Reply:
        """Run one request from any event loop. Cancelling the task cancels the request."""
        self._inbox.check_open()
        calls = await self._compiled(self._intake.prepare_samples(request))
        await self._until_ended(calls)
        return reply_of(calls)

    async def run_async(
        self, requests: Iterable[Request], *, return_exceptions: bool = False
    ) -> list[Reply | Exception]:
        """``run`` from any event loop: ``requests`` as one batch; replies in order. One request's
        failure ends no other: afterwards the first error is raised, or stands in its place with
        ``return_exceptions``. Cancelling the task cancels them all."""
        keep = flag("return_exceptions", return_exceptions)
        prepared = self._prepared_each(requests, keep)
        calls = calls_of(prepared)
        if any(call.request.params.is_structured for call in calls):
            self._number_first(calls)
            prepared = await asyncio.to_thread(self._compiled_each, prepared, keep)
        else:
            prepared = self._compiled_each(prepared, keep)
        await self._until_ended(calls_of(prepared))
        return [outcome(samples, keep) for samples in prepared]

    def stream(self, request: Request) -> ReplyStream:
        """Run one request and read along: ``for piece in engine.stream(request)``.

        The request runs from now on. A reader that stops reading cancels it.
        """
        call = self._prepare_one(request)
        self._thread.start_thread()
        return ReplyStream(self._reader(call, Bell()))

    def stream_async(self, request: Request) -> AsyncReplyStream:
        """``stream`` for ``async for`` in the running event loop. The request is checked, and runs,
        from the first read on."""
        return AsyncReplyStream(partial(self._begin, request))

    async def stream_samples_async(self, request: Request) -> list[AsyncReplyStream]:
        """The ``n`` samples of ``request``, each a stream of its own for ``async for``. The request
        is checked, and runs, when this returns; the first sample computes the prompt for all."""
        self._inbox.check_open()
        calls = await self._compiled(self._intake.prepare_samples(request))
        self._thread.start_thread()
        return [AsyncReplyStream(self._reader(call, LoopBell())) for call in calls]

    async def _begin(self, request: Request) -> Reader:
        self._inbox.check_open()
        [call] = await self._compiled([self._intake.prepare_one(request)])
        self._thread.start_thread()
        return self._reader(call, LoopBell())

    async def _until_ended(self, calls: list[Call]) -> None:
        """Hand in ``calls`` and wait until all have ended."""
        bell = LoopBell()
        for call in calls:
            call.waiter = bell
        self._thread.start_thread()
        with self._desk.ticket(calls):  # by whatever way it is left, the collector's included
            self._enter(calls)
            await bell.until_ended(calls)

    async def _compiled(self, calls: list[Call]) -> list[Call]:
        """``calls`` with their constraints. A structure is compiled on another thread, because that
        may take long."""
        if not calls[0].request.params.is_structured:
            return self._intake.compile(calls)
        self._number_first(calls)
        return await asyncio.to_thread(self._intake.compile, calls)

    def _number_first(self, calls: list[Call]) -> None:
        """Number ``calls`` before their structures are compiled, in the order in which their
        coroutines begin: a text must not depend on which compilation ends first."""
        if not self._limiter.refuses:
            self._intake.number(calls)

    def _reader(self, call: Call, bell: Bell | LoopBell) -> Reader:
        """Hand ``call`` in, and return the reader of its tokens."""
        mailbox = Mailbox(call, bell, self._loop.calls.announce)
        ticket = self._desk.ticket([call])
        text = call.model.text_stream(call.request.params.stop)
        reader = Reader(ticket, mailbox, text, self._check_process)
        try:
            self._enter(ticket.calls)
        except BaseException:
            reader.close()
            raise
        return reader

    def _check_process(self) -> None:
        """For readers: a bound method, by which a reader keeps its engine alive."""
        self._inbox.check_process()
