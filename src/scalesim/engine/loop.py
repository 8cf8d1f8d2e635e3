"""The loop: plan, move, run, commit. One step at a time, always on one thread; knows no threads
itself.

Driven by ``Engine``, which brings it calls, hints and the clock in the order in which they were
given.
"""

from __future__ import annotations

import itertools
import math
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from scalesim.batch import NO_TOKEN, LaunchedStep
from scalesim.checks import shown
from scalesim.core import AgentId
from scalesim.distance.clock import Clock
from scalesim.distance.combine import Combine, earliest_credible
from scalesim.distance.distances import Change, Distances
from scalesim.distance.estimates import Source
from scalesim.distance.voice import Voice
from scalesim.engine.parts import EngineParts
from scalesim.errors import (
    EngineClosedError,
    InternalError,
    KernelError,
    RequestCancelledError,
    RequestTimeoutError,
    ScaleSimError,
)
from scalesim.foreign import Foreign, words_of
from scalesim.memory.audit.auditor import Auditor
from scalesim.memory.timing import Pace
from scalesim.requests.call import Call, deliver
from scalesim.requests.deadlines import Deadlines
from scalesim.requests.limiter import RequestLimiter
from scalesim.sampling.embedding import EmbeddingLog
from scalesim.sampling.keys import SamplingKeys
from scalesim.sampling.logits import logits_processor_of
from scalesim.sampling.logprobs import LogprobsLog
from scalesim.scheduler.sequence import Sequence
from scalesim.trace.recorder import Recorder

MAX_STALL_S = 0.05
MAX_FRUITLESS = 8


@dataclass(slots=True)
class EngineStats:
    """Counts since the start. ``steps`` are the engine's; ``compute_s`` is the runner's time."""

    steps: int = 0
    calls: int = 0  # that gave a reply
    failed: int = 0  # calls that ended with an error
    prompt_tokens: int = 0  # of the calls that have ended
    cached_tokens: int = 0  # of the prompts, found in memory
    output_tokens: int = 0  # of the calls that have ended
    compute_s: float = 0.0
    restarts: int = 0  # something broke inside, and all state was made anew
    lost_pages: int = 0  # that left circulation for it, of both pools

    @property
    def turns(self) -> int:
        """The deprecated name of ``calls``."""
        warnings.warn("stats.turns is named calls now", DeprecationWarning, stacklevel=2)
        return self.calls


class EngineLoop:
    """Everything between an accepted call and its reply. ``step`` is the whole of it."""

    def __init__(
        self,
        parts: EngineParts,
        sources: Iterable[Source] = (),
        combine: Combine = earliest_credible,
    ) -> None:
        self.parts = parts
        self.memory, self.scheduler = parts.memory, parts.scheduler
        self.clock = Clock()
        self.distances = Distances(self.clock, combine)
        self.stats = EngineStats()
        self.scheduler.before_release = self._ends
        self.gate = RequestLimiter(sys.maxsize)
        # told of calls that ended, before their callers are; of one more than once, maybe
        self.on_ended: Callable[[list[Call]], None] = lambda calls: None
        # memory was emptied: adapters are to be added again
        self.restored: Callable[[], None] = lambda: None
        self.recorder: Recorder | None = None
        self.guard = Auditor(self.memory, self.scheduler.leases, parts.integrity)
        self._speaking: set[int] = set()  # sequences that distances count as open
        self._leaving: set[AgentId] = set()  # who is being forgotten
        self._fruitless = 0  # restarts since a token was collected last
        self._kernel_error: str | None = None  # what a kernel raised last
        self._keys = SamplingKeys(parts.seed)
        self._flights: deque[LaunchedStep] = deque()
        # Ctrl-C, where it struck inside all the same: state was made anew, and it is to be raised
        self.interrupt: KeyboardInterrupt | None = None
        self._over: str | None = None  # what calls are told that come too late
        self._death: BaseException | None = None
        self._open: dict[int, Call] = {}
        self._news: list[Call] = []  # gave tokens in this step to somebody who waits for them
        self._deadlines = Deadlines()
        self._ids = itertools.count(1)
        for source in sources:
            self.listen(source)

    @property
    def keys(self) -> SamplingKeys:
        """What numbers equal requests; from any thread."""
        return self._keys

    def step(self) -> bool:
        """Plan, move, run, commit; False when there is nothing to do. Raises only what cannot be
        mended."""
        is_busy = True
        with Foreign() as broke:
            is_busy = self._iterate()
            self.guard.after_step()
            if not is_busy:
                self.guard.when_idle()
        if broke.error is not None:
            self._begin_anew(broke.error)
            return True
        return is_busy

    def obey(self, command: Callable[[], object]) -> None:
        """Do what a caller asked for."""
        with Foreign() as broke:
            command()
        if broke.error is not None:
            self._begin_anew(broke.error)

    def _begin_anew(self, error: BaseException) -> None:
        """Something broke inside. What was under way is not mended but forgotten: prompts and the
        tokens that came of them are all that is needed to compute everything else again, and
        open calls go on from there. Raises ``error`` where that brings nothing, or is not
        wanted."""
        self._fruitless += 1
        is_wanted = self.parts.integrity == "quarantine"
        if isinstance(error, KeyboardInterrupt):
            self.interrupt, is_wanted = error, True  # it says nothing of the books
        if not is_wanted or self._fruitless > MAX_FRUITLESS:
            raise error
        if isinstance(error, KernelError):  # a function of its inputs: what it raised, it will
            if str(error) == self._kernel_error and self._fruitless > 1:
                raise error
            self._kernel_error = str(error)
        suspects = self.guard.examine(error)
        self.stats.restarts += 1
        while self._flights:
            with Foreign():  # also a step that failed is over
                self.parts.runner.collect(self._flights.popleft())
        self.memory.reset(suspects.pages)
        for agent in self._leaving:  # it broke in the middle of that
            self.memory.forget(agent)
        self._leaving = set()
        self.stats.lost_pages = sum(len(tier.lost) for tier in self.memory.tiers)
        sequences = [call.sequence for call in self._open.values() if call.sequence is not None]
        self.scheduler.restart(sequences, {id(lease) for lease in suspects.leases})
        self.restored()
        self._settle(self.scheduler.take_ended())

    def _iterate(self) -> bool:
        self._expire()
        if self.gate.opens:
            self.accept([])
        batch = self.scheduler.schedule()
        in_background = self.parts.runner.steps_in_flight > 1
        if not in_background:
            self.memory.plan(self.parts.time_s(), self.scheduler.forecast)
        if batch is not None:
            self._flights.append(self.parts.runner.launch(batch))
            self.stats.steps += 1
        if in_background:  # the planner's time passes behind the step
            self.memory.plan(self.parts.time_s(), self.scheduler.forecast)
        if self._flights and (
            batch is None or len(self._flights) >= self.parts.runner.steps_in_flight
        ):
            output = self.parts.runner.collect(self._flights.popleft())
            self.stats.compute_s += output.compute_s
            self.scheduler.update(output)
            if self._fruitless and output.token_ids.max(initial=NO_TOKEN) != NO_TOKEN:
                self._fruitless = 0
        elif batch is None and self.scheduler.has_work and not self.scheduler.has_ended:
            self._stall()
        self._settle(self.scheduler.take_ended())
        is_busy = batch is not None or bool(self._flights) or self.scheduler.has_work
        return is_busy or self.gate.opens

    def _stall(self) -> None:
        """Nothing can run until a copy arrives."""
        assert self.memory.is_moving, "requests wait, nothing runs, and no copy is under way"
        start = self.parts.time_s()
        self.parts.link.wait(MAX_STALL_S)
        self.memory.stalled(self.parts.time_s() - start)

    def accept(self, calls: list[Call]) -> None:
        """Take in checked calls, and those in line before them, as far as there are places; the
        rest waits in line. What fails while a call's own sequence is made ends that call alone:
        nothing else was touched. What fails behind that broke in what all share."""
        if self._over is not None:
            for call in calls:
                self.refuse([call], self._closed_error(self._over))
            return
        for call in calls:
            self._deadlines.add(call)
        failure: BaseException | None = None
        for call in self.gate.enter(calls):
            with Foreign() as raised:
                self._accept(call)
            if raised.error is None:
                continue
            if call.sequence is None:
                self._turn_away(call, raised.error)
            else:
                failure = raised.error
        if failure is not None:  # only now: the calls behind the one that failed are in as well
            self._begin_anew(failure)

    def _accept(self, call: Call) -> None:
        sequence = self._sequence_of(call)
        call.sequence, self._open[sequence.id] = sequence, call
        self._enter(call, sequence)

    def _sequence_of(self, call: Call) -> Sequence:
        """``call`` as the scheduler will see it."""
        request, params = call.request, call.request.params
        digest = call.digest
        if digest is None:
            digest = self._keys.prompt_digest(call.tokens, params)
        # of an agent that was forgotten since it was handed in: it goes on as nobody's
        agent = None if call.owner is not None and call.owner.is_forgotten else request.agent
        sequence = Sequence(
            id=next(self._ids),
            agent=agent,
            domain=None,
            tokens=call.tokens,
            prompt_len=len(call.tokens),
            limit=len(call.tokens) + params.max_tokens,
            params=params,
            attachments=call.attachments,
            key=self._keys.key(
                request.agent, digest, params, request.sample_index, call.number or 0
            ),
            stop_ids=frozenset(params.stop_token_ids)
            | (frozenset() if params.ignore_eos else self.parts.model.eos_ids),
            observer=call.observer if call.mailbox is None else call.mailbox,
            priority=request.priority,
            leaves_nothing=agent != request.agent,
        )
        guide = None if call.make_guide is None else call.make_guide()
        sequence.adjust = logits_processor_of(params, len(call.tokens), sequence.stop_ids, guide)
        if call.mailbox is not None:
            call.mailbox.announce = self._news.append
        if request.pooling is not None:
            sequence.embedding_log = EmbeddingLog(len(call.tokens), request.pooling)
        if params.logprobs is not None or params.prompt_logprobs is not None:
            sequence.score_log = LogprobsLog(len(call.tokens), params)
        return sequence

    def _enter(self, call: Call, sequence: Sequence) -> None:
        """``call``, which counts as open, is known to all from now on."""
        agent = sequence.agent
        if self.recorder is not None:
            tick, at_s = self.clock.now, call.submitted_s
            self.recorder.begins(sequence.id, agent, tick, at_s, call.tokens)
        if agent is not None:
            self.memory.called(agent, self.distances.next_use(agent))
            self._speaking.add(sequence.id)
            self._apply(self.distances.called(agent))
        leader = None if call.leader is None else call.leader.sequence
        if leader is None:
            self.scheduler.add(sequence)
        else:
            self.scheduler.add_behind(leader, sequence)

    def _turn_away(self, call: Call, cause: BaseException) -> None:
        error: Exception
        if isinstance(cause, ScaleSimError):
            error = cause
        else:
            error = InternalError(
                f"the request could not be taken in: {words_of(cause)}; ask again"
            )
            error.__cause__ = cause
        self.refuse([call], error)

    def refuse(self, calls: list[Call], error: Exception) -> None:
        """End calls that were never accepted."""
        calls = [call for call in calls if not call.done]
        now_s = self.parts.time_s()
        for call in calls:
            call.error, call.done, call.ended_s = error, True, now_s
        self.stats.failed += len(calls)
        self._let_go(calls)

    def _let_go(self, calls: list[Call], news: Iterable[Call] = ()) -> None:
        """``calls`` are done: what they held is free, and then, whatever fails, who waits is
        told."""
        with ExitStack() as last:  # from below
            last.callback(deliver, [*calls, *news])
            if calls:
                last.callback(self.on_ended, calls)
                last.callback(self.gate.leave, calls)
            for call in calls:
                self._deadlines.ended(call)

    def _settle(self, ended: list[Sequence]) -> None:
        """Tell the callers of what ended, and those who wait for tokens that there are some."""
        if not ended and not self._news:
            return
        now_s = self.parts.time_s()
        calls = [self._open.pop(sequence.id) for sequence in ended]
        for sequence, call in zip(ended, calls, strict=True):
            call.error, call.ended_s, call.done = sequence.error, now_s, True
        news = [call for call in self._news if not call.done]
        self._news.clear()
        with ExitStack() as last:
            last.callback(self._let_go, calls, news)
            for sequence, call in zip(ended, calls, strict=True):
                self._count(sequence, call)

    def _count(self, sequence: Sequence, call: Call) -> None:
        if self.recorder is not None:
            self.recorder.ends(sequence.id, sequence.output)
        if sequence.error is None:
            self.stats.calls += 1
        else:
            self.stats.failed += 1
        self.stats.prompt_tokens += sequence.prompt_len
        self.stats.cached_tokens += sequence.cached_tokens
        self.stats.output_tokens += len(sequence.output)

    def _ends(self, sequence: Sequence) -> None:
        if sequence.agent is not None and sequence.id in self._speaking:
            self._speaking.discard(sequence.id)
            self._apply(self.distances.ended(sequence.agent))

    def _expire(self) -> None:
        if not len(self._deadlines):
            return
        for call in self._deadlines.due(self.parts.time_s()):
            request = call.request
            what = (
                f"request of agent {shown(request.agent)} did not end within "
                f"timeout={request.timeout} s, or by deadline={request.deadline}"
            )
            if call.sequence is None:
                what += f": it waited for one of max_open_requests={self.gate.limit} places"
            error = RequestTimeoutError(what)
            self.end_call(call, "timeout", error)

    def end_call(
        self, call: Call, reason: Literal["cancelled", "timeout"], error: Exception
    ) -> None:
        """End ``call`` now; no effect on one that has ended."""
        if call.done:
            return
        if (sequence := call.sequence) is None:
            self.refuse([call], error)
        else:
            sequence.finish_reason, sequence.error = reason, error  # whatever breaks from here on
            self.scheduler.cancel(sequence, reason, error)

    def abandon(self, calls: list[Call]) -> None:
        """Nobody waits for ``calls``: they end, wherever they are; also if they never came in."""
        error = RequestCancelledError("the request was cancelled")
        for call in calls:
            self.end_call(call, "cancelled", error)

    def forget(self, agents: list[AgentId]) -> None:
        """Nothing of ``agents`` is kept. Their open calls go on as nobody's."""
        gone = self._leaving = set(agents)
        for id, call in self._open.items():
            if call.sequence is not None and call.sequence.agent in gone:
                call.sequence.agent, call.sequence.leaves_nothing = None, True
                self._speaking.discard(id)
        if self.recorder is not None:
            self.recorder.forget(agents)
        self._apply(self.distances.forget(agents))
        for agent in agents:
            self.memory.forget(agent)
        self._leaving = set()

    def listen(self, source: Source) -> None:
        """Take ``source``'s advice from now on. Raises ``ConfigError``."""
        self._apply(self.distances.add(source))

    def hear(self, voice: Voice) -> None:
        """``listen``, to what was looked at before."""
        self._apply(self.distances.listen(voice))

    def poll_sources(self) -> None:
        """A source was told something."""
        self._apply(self.distances.poll())

    def expect(
        self, times: Mapping[AgentId, float], confidence: float = 1.0, *, absolute: bool
    ) -> None:
        """Hints: times of the clock if ``absolute``, else ticks from now; of agents that were
        forgotten meanwhile, nothing."""
        times = {each: at for each, at in times.items() if self.distances.is_known(each)}
        offset = 0.0 if absolute else self.clock.now
        if self.recorder is not None:
            for agent, ticks in times.items():
                if math.isfinite(ticks):
                    self.recorder.expects(agent, self.clock.now, offset + ticks)
        self._apply(self.distances.expect_all(times, confidence, offset=offset))

    def wake(self, agent: AgentId) -> None:
        if not self.distances.is_known(agent):
            return
        if self.recorder is not None:
            self.recorder.expects(agent, self.clock.now, self.clock.now)
        self._apply(self.distances.wake(agent))

    def tick(self, wall_s: float, n: float = 1.0, *, to: float | None = None) -> None:
        """Move the clock; ``wall_s`` is when that was asked for."""
        if to is not None and to < self.clock.now:
            return  # another caller moved the clock past it meanwhile
        changes = self.distances.tick(wall_s, n, to=to)
        clock = self.clock
        if self.recorder is not None:
            self.recorder.ticks(clock.now)
        hint_jitter_s = self.distances.early_ticks * (clock.seconds_per_tick or 0.0)
        pace = Pace(clock.seconds_per_tick, clock.jitter_s + hint_jitter_s, wall_s)
        self.memory.tick(clock.now, pace, idle=not self.scheduler.has_work)
        self._apply(changes)

    def _apply(self, changes: list[Change]) -> None:
        self.memory.hint(changes)

    def end_all(self, cause: BaseException | None) -> None:
        """Nothing runs any more: every call that is open, in line, or yet to come ends with
        ``EngineClosedError``, chained to ``cause`` if the engine died of something."""
        if self._over is None:
            self._death = cause
            self._over = (
                "the engine was closed" if cause is None else f"the engine died: {words_of(cause)}"
            )
        calls = [*self._open.values(), *self.gate.calls()]
        self._open.clear()
        ended = [call for call in dict.fromkeys(calls) if not call.done]
        for call in ended:
            call.error, call.done = self._closed_error(self._over), True
        self._let_go(ended)

    def _closed_error(self, message: str) -> EngineClosedError:
        error = EngineClosedError(message)  # one for each call: raising it marks it
        error.__cause__ = self._death
        return error

    def drain(self) -> None:
        """Let the steps and the copies under way end; call back what has not started."""
        while self._flights:  # a copy may wait for a step that was launched
            self.parts.runner.collect(self._flights.popleft())
        self.memory.drain()
