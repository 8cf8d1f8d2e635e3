"""Entrypoints: how a caller's thread hands requests to the engine and waits for replies.

Requests are checked on the caller's thread (``requests.prepare``) and run by the loop on another.
The inbox is the only way from one to the other. A ticket is taken before a call is handed in, so
that the call is cancelled however its caller leaves. ``Engine`` inherits these methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, TypeAlias, TypeVar

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
from scalesim.requests.tickets import LOOK_S, Desk, Latch
from scalesim.sampling.params import SamplingParams

_SHOW_S = 0.1  # how often ``run`` shows its progress
_PARAMS = frozenset(field.name for field in fields(SamplingParams))
_OPTIONS = frozenset(field.name for field in fields(Request)) - {"prompt", "agent", "params"}
Given = TypeVar("Given")
Prepared: TypeAlias = "list[Call] | Exception"
"""The calls of a request's samples, or why there are none."""


class Entrypoints:
    """Runs requests, one or many, and waits for their replies, or hands one in to be polled.

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
        keep = flag("return_exceptions", return_exceptions)
        prepared = self._compiled_each(self._prepared_each(requests, keep), keep)
        calls = calls_of(prepared)
        with shown(progress, len(calls)) as show:
            self._run(calls, show)
        return [outcome(samples, keep) for samples in prepared]

    def generate(self, request: Request) -> Reply:
        """Run one request and wait."""
        calls = self._prepare(request)
        self._run(calls)
        return reply_of(calls)

    def submit(self, request: Request) -> Call:
        """Hand in a request without waiting, in a program that drives ``step()``: poll
        ``call.done``. The request has one sample: for more, submit requests that differ in
        ``sample_index``. Raises ``EngineFullError`` where too many requests are open."""
        call = self._prepare_one(request)
        with self._desk.ticket([call]) as ticket:
            self._enter(ticket.calls, waits=False)
        return call

    def cancel(self, call: Call) -> None:
        """End a call; its pages are free within two steps. No effect on one that has ended. Raises
        ``RequestError`` for what is no call of this engine."""
        instance("call", call, Call, "submit() gives one")
        if not self._intake.models.is_of(call):
            raise RequestError("this call is another engine's; cancel it there")
        self._inbox.post(partial(self._loop.calls.abandon, [call]))

    def sampling(self, **params: Any) -> SamplingParams:
        """``SamplingParams`` of these fields. The others are as the model's
        ``generation_config.json`` says, unless ``EngineConfig.generation_config`` is off. Agents
        make their requests with this; a ``Request`` made directly gets no such defaults. Raises
        ``RequestError`` for an unknown field."""
        for name in params:
            if name not in _PARAMS:
                raise RequestError(unknown_option(name, _PARAMS | _OPTIONS, "option"))
        return SamplingParams(**{**self.parts.model.defaults, **params})

    # -- shared with the streaming and async forms --------------------------------------------

    def _prepare_one(self, request: Request) -> Call:
        self._inbox.check_open()
        [call] = self._intake.compile([self._intake.prepare_one(request)])
        return call

    def _prepare(self, request: Request) -> list[Call]:
        self._inbox.check_open()
        return self._intake.compile(self._intake.prepare_samples(request))

    def _prepared_each(self, requests: Iterable[Request], keep: bool) -> list[Prepared]:
        """The calls of each request, or with ``keep`` the error that it raises."""
        if not isinstance(requests, Iterable) or isinstance(requests, (str, bytes, Mapping)):
            refuse("requests", requests, "must be a list of Requests; generate() takes one")
        self._inbox.check_open()
        with reading("requests"):
            iterator = iter(requests)
        return [kept(self._intake.prepare_samples, request, keep) for request in iterator]

    def _compiled_each(self, prepared: Iterable[Prepared], keep: bool) -> list[Prepared]:
        """``prepared`` with constraints, or with ``keep`` the error of one that cannot be."""
        return [
            kept(self._intake.compile, calls, keep) if isinstance(calls, list) else calls
            for calls in prepared
        ]

    def _run(self, calls: list[Call], show: Show | None = None) -> None:
        """Hand in ``calls`` and wait until all have ended. Ctrl-C gets through and cancels them."""
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
        """Hand in ``calls``, under a ticket, which undoes what an interrupt leaves half done. Calls
        that find no place wait in line, or are refused."""
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


def kept(prepare: Callable[[Given], list[Call]], given: Given, keep: bool) -> Prepared:
    """What ``prepare`` makes of ``given``, or with ``keep`` the error that it raises."""
    try:
        return prepare(given)
    except Exception as error:
        if not keep:
            raise
        return error


def calls_of(prepared: Iterable[Prepared]) -> list[Call]:
    """The calls of those requests that have become some."""
    return [call for samples in prepared if isinstance(samples, list) for call in samples]


def outcome(samples: Prepared, keep: bool) -> Reply | Exception:
    """The reply of a request's samples, or with ``keep`` its error."""
    if isinstance(samples, Exception):
        return samples
    try:
        return reply_of(samples)
    except Exception as error:
        if not keep:
            raise
        return error
