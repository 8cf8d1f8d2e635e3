"""The open calls: every call from its hand-in until its caller is told of its end.

On the loop's thread. A call waits for a place; with a place it gets a sequence. However a call
ends, what it used is given back first, and its caller is told last.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Literal

from scalesim.checks import shown
from scalesim.core import AgentId
from scalesim.engine.parts import EngineParts
from scalesim.engine.stats import EngineStats
from scalesim.errors import (
    EngineClosedError,
    InternalError,
    RequestCancelledError,
    RequestTimeoutError,
    ScaleSimError,
)
from scalesim.foreign import words_of
from scalesim.requests.bindings import Bindings
from scalesim.requests.call import Call
from scalesim.requests.deadlines import Deadlines
from scalesim.requests.limiter import RequestLimiter
from scalesim.requests.tickets import deliver
from scalesim.scheduler.sequence import Sequence
from scalesim.trace.recorder import Recorder


class OpenCalls:
    """Iterates over the calls that have a sequence. Counts in ``stats`` how calls end, and has
    ``recorder`` write down what each said."""

    def __init__(
        self,
        parts: EngineParts,
        stats: EngineStats,
        limiter: RequestLimiter,
        bindings: Iterable[Bindings[Any]],
        recorder: Recorder | None,
    ) -> None:
        self._scheduler, self._time_s = parts.scheduler, parts.time_s
        self._stats, self._limiter = stats, limiter
        self._bindings, self._recorder = bindings, recorder
        self._by_sequence: dict[int, Call] = {}
        self._news: list[Call] = []  # calls with tokens of this step that a reader waits for
        self.announce = self._news.append
        self._deadlines = Deadlines()
        self._over: str | None = None  # why no further call is taken, once that is so
        self._death: BaseException | None = None

    def __len__(self) -> int:
        return len(self._by_sequence)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._by_sequence.values())

    @property
    def sequences(self) -> list[Sequence]:
        return [call.sequence for call in self if call.sequence is not None]

    @property
    def can_enter(self) -> bool:
        """Whether a call in line has a place now."""
        return self._limiter.opens

    # -- in -----------------------------------------------------------------------------------

    def enter(self, calls: list[Call]) -> list[Call]:
        """The calls that have places: of ``calls`` and of those that waited in line before. The
        others wait in line."""
        if self._over is not None:
            for call in calls:
                self.refuse([call], self._closed_error(self._over))
            return []
        for call in calls:
            self._deadlines.add(call)
        return self._limiter.enter(calls)

    def add(self, call: Call, sequence: Sequence) -> None:
        """``call`` has a place and, from now on, a sequence."""
        call.sequence, self._by_sequence[sequence.id] = sequence, call

    def disown(self, agents: Collection[AgentId]) -> None:
        """The calls of ``agents`` go on as nobody's."""
        for sequence in self.sequences:
            if sequence.agent in agents:
                sequence.agent, sequence.leaves_nothing, sequence.on_end = None, True, None

    # -- out ----------------------------------------------------------------------------------

    def settle(self, ended: list[Sequence]) -> None:
        """Tell callers that their calls ended, and readers that tokens have come."""
        if not ended and not self._news:
            return
        now_s = self._time_s()
        calls = [self._by_sequence.pop(sequence.id) for sequence in ended]
        for sequence, call in zip(ended, calls, strict=True):
            call.error, call.ended_s, call.done = sequence.error, now_s, True
        news = [call for call in self._news if not call.done]
        self._news.clear()
        with ExitStack() as last:
            last.callback(self._let_go, calls, news)
            for sequence in ended:
                self._count(sequence)

    def _count(self, sequence: Sequence) -> None:
        if self._recorder is not None:
            self._recorder.ends(sequence.id, sequence.output)
        stats = self._stats
        if sequence.error is None:
            stats.calls += 1
        else:
            stats.failed += 1
        stats.prompt_tokens += sequence.prompt_len
        stats.cached_tokens += sequence.cached_tokens
        stats.output_tokens += len(sequence.output)

    def refuse(self, calls: list[Call], error: Exception) -> None:
        """End calls that never had a sequence."""
        calls = [call for call in calls if not call.done]
        now_s = self._time_s()
        for call in calls:
            call.error, call.done, call.ended_s = error, True, now_s
        self._stats.failed += len(calls)
        self._let_go(calls)

    def refuse_for(self, call: Call, cause: BaseException) -> None:
        """``refuse`` for ``cause``, which was raised while the sequence of ``call`` was made."""
        error: Exception
        if isinstance(cause, ScaleSimError):
            error = cause
        else:
            error = InternalError(
                f"the request could not be taken in: {words_of(cause)}; ask again"
            )
            error.__cause__ = cause
        self.refuse([call], error)

    def _let_go(self, calls: list[Call], news: Iterable[Call] = ()) -> None:
        """``calls`` are done: give back what they held, and then, whatever fails, tell the
        waiters of ``calls`` and of ``news``."""
        with ExitStack() as last:  # runs from the last callback to the first
            last.callback(deliver, [*calls, *news])
            for bindings in self._bindings if calls else ():
                last.callback(bindings.let_go, calls)
            if calls:
                last.callback(self._limiter.leave, calls)
            for call in calls:
                self._deadlines.ended(call)

    def abandon(self, calls: list[Call]) -> None:
        """Cancel ``calls``, for which nobody waits any more; also calls that never came in."""
        error = RequestCancelledError("the request was cancelled")
        for call in calls:
            self._end(call, "cancelled", error)

    def expire(self) -> None:
        """End the calls whose time is over."""
        if not len(self._deadlines):
            return
        for call in self._deadlines.due(self._time_s()):
            request = call.request
            what = (
                f"request of agent {shown(request.agent)} did not end within "
                f"timeout={request.timeout} s, or by deadline={request.deadline}"
            )
            if call.sequence is None:
                what += f": it waited for one of max_open_requests={self._limiter.limit} places"
            self._end(call, "timeout", RequestTimeoutError(what))

    def _end(self, call: Call, reason: Literal["cancelled", "timeout"], error: Exception) -> None:
        """No effect on a call that has ended."""
        if call.done:
            return
        if (sequence := call.sequence) is None:
            self.refuse([call], error)
        else:
            # noted before anything can break: a restart then ends the call like this
            sequence.finish_reason, sequence.error = reason, error
            self._scheduler.end(sequence, reason, error)

    def end_all(self, cause: BaseException | None) -> None:
        """Nothing runs any more: every call that is open, in line, or yet to come ends with
        ``EngineClosedError``, chained to ``cause`` if the engine died of something."""
        self._death = cause
        self._over = (
            "the engine was closed" if cause is None else f"the engine died: {words_of(cause)}"
        )
        calls = [*self, *self._limiter.calls()]
        self._by_sequence.clear()
        ended = [call for call in dict.fromkeys(calls) if not call.done]
        for call in ended:
            call.error, call.done = self._closed_error(self._over), True
        self._let_go(ended)

    def _closed_error(self, message: str) -> EngineClosedError:
        error = EngineClosedError(message)  # its own for each call: raising changes an exception
        error.__cause__ = self._death
        return error
