"""The loop: plan, move, run, commit. One step at a time, always on one thread; knows no threads
itself.

Driven by ``Engine``, which brings it calls, hints and the clock in the order in which they were
given.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Literal

from scalesim.adapters import ReadAdapter
from scalesim.calls import Call, deliver
from scalesim.config import CallLimits
from scalesim.core import NO_TOKEN, AgentId, Runner, Step
from scalesim.distance.clock import Clock
from scalesim.distance.combine import Combine, earliest_credible
from scalesim.distance.distances import Change, Distances
from scalesim.distance.estimates import Source
from scalesim.errors import EngineClosedError, InternalError, KernelError, RequestTimeoutError
from scalesim.guard import Guard, Integrity
from scalesim.memory.links import Link
from scalesim.memory.look_ahead import Pace
from scalesim.memory.manager import MemoryManager
from scalesim.recorder import Recorder
from scalesim.requests import TextModel
from scalesim.sampling_keys import SamplingKeys
from scalesim.scheduler.adjusting import adjust_of
from scalesim.scheduler.pooling import PoolLog
from scalesim.scheduler.scheduler import Scheduler
from scalesim.scheduler.scoring import ScoreLog
from scalesim.scheduler.sequence import Sequence

MAX_STALL_S = 0.05
MAX_FRUITLESS = 8


@dataclass(frozen=True, slots=True)
class Parts:
    """What an engine is made of. ``assembly.build_parts`` makes them for a model folder; a test or
    a simulation passes others. ``time_s`` is monotonic seconds. ``before_wait`` runs on a
    caller's thread when it leaves the computing to the engine's. ``device`` is where the runner
    computes. ``read_adapter`` reads an adapter's folder; ``None``: no adapters here. ``limits``:
    how many requests may be open. ``integrity`` is ``EngineConfig``'s; tests raise."""

    runner: Runner
    memory: MemoryManager
    scheduler: Scheduler
    link: Link
    model: TextModel
    seed: int = 0
    time_s: Callable[[], float] = time.monotonic
    before_wait: Callable[[], None] = lambda: None
    device: str = "cpu"
    read_adapter: ReadAdapter | None = None
    limits: CallLimits = field(default_factory=CallLimits)
    integrity: Integrity = "raise"


@dataclass(slots=True)
class EngineStats:
    """Counts since the start. ``steps`` are the engine's; ``compute_s`` is the runner's time."""

    steps: int = 0
    turns: int = 0  # calls that gave a reply
    failed: int = 0  # calls that ended with an error
    prompt_tokens: int = 0  # of the calls that have ended
    cached_tokens: int = 0  # of the prompts, found in memory
    output_tokens: int = 0  # of the calls that have ended
    compute_s: float = 0.0
    restarts: int = 0  # something broke inside, and all state was made anew
    lost_pages: int = 0  # that left circulation for it, of both pools


class Loop:
    """Everything between an accepted call and its reply. ``step`` is the whole of it."""

    def __init__(
        self,
        parts: Parts,
        sources: Iterable[Source] = (),
        combine: Combine = earliest_credible,
    ) -> None:
        self.parts = parts
        self.memory, self.scheduler = parts.memory, parts.scheduler
        self.clock = Clock()
        self.distances = Distances(self.clock, combine)
        self.stats = EngineStats()
        self.scheduler.before_release = self._ends
        # told of calls that ended, before their callers are
        self.on_ended: Callable[[list[Call]], None] = lambda calls: None
        # memory was emptied: adapters are to be added again
        self.restored: Callable[[], None] = lambda: None
        self.recorder: Recorder | None = None
        self.guard = Guard(self.memory, self.scheduler.leases, parts.integrity)
        self._speaking: set[int] = set()  # sequences that distances count as open
        self._fruitless = 0  # restarts since a token was collected last
        self._kernel_error: str | None = None  # what a kernel raised last
        self._keys = SamplingKeys(parts.seed)
        self._flights: deque[Step] = deque()
        self._open: dict[int, Call] = {}
        self._news: list[Call] = []  # gave tokens in this step to somebody who waits for them
        self._deadlines: list[tuple[float, int]] = []
        self._ids = itertools.count(1)
        for source in sources:
            self.listen(source)

    def step(self) -> bool:
        """Plan, move, run, commit; False when there is nothing to do. Raises only what cannot be
        mended."""
        try:
            is_busy = self._turn()
            self.guard.after_step()
            if not is_busy:
                self.guard.when_idle()
        except Exception as error:
            self._begin_anew(error)
            return True
        return is_busy

    def obey(self, command: Callable[[], None]) -> None:
        """Do what a caller asked for."""
        try:
            command()
        except Exception as error:
            self._begin_anew(error)

    def _begin_anew(self, error: Exception) -> None:
        """Something broke inside. What was under way is not mended but forgotten: prompts and the
        tokens that came of them are all that is needed to compute everything else again, and
        open calls go on from there. Raises ``error`` where that brings nothing, or is not
        wanted."""
        self._fruitless += 1
        if self.parts.integrity != "quarantine" or self._fruitless > MAX_FRUITLESS:
            raise error
        if isinstance(error, KernelError):  # a function of its inputs: what it raised, it will
            if str(error) == self._kernel_error and self._fruitless > 1:
                raise error
            self._kernel_error = str(error)
        suspects = self.guard.examine(error)
        self.stats.restarts += 1
        while self._flights:
            with suppress(Exception):  # also a step that failed is over
                self.parts.runner.collect(self._flights.popleft())
        self.memory.reset(suspects.device, suspects.host)
        self.stats.lost_pages = len(self.memory.device_lost) + len(self.memory.host_lost)
        sequences = [call.sequence for call in self._open.values() if call.sequence is not None]
        self.scheduler.restart(sequences, {id(lease) for lease in suspects.leases})
        self.restored()
        self._settle(self.scheduler.take_ended())

    def _turn(self) -> bool:
        self._expire()
        batch = self.scheduler.schedule()
        in_background = self.parts.runner.steps_in_flight > 1
        if not in_background:
            self.memory.look_ahead.plan(self.parts.time_s())
        if batch is not None:
            self._flights.append(self.parts.runner.launch(batch))
            self.guard.launched(batch.step)
            self.stats.steps += 1
        if in_background:  # the planner's time passes behind the step
            self.memory.look_ahead.plan(self.parts.time_s())
        if self._flights and (
            batch is None or len(self._flights) >= self.parts.runner.steps_in_flight
        ):
            output = self.parts.runner.collect(self._flights.popleft())
            self.stats.compute_s += output.compute_s
            self.scheduler.update(output)
            if self._fruitless and output.token_ids.max(initial=NO_TOKEN) != NO_TOKEN:
                self._fruitless = 0
        elif batch is None and self.scheduler.has_work:
            self._stall()
        self._settle(self.scheduler.take_ended())
        return batch is not None or bool(self._flights) or self.scheduler.has_work

    def _stall(self) -> None:
        """Nothing can run until a copy arrives."""
        residency = self.memory.residency
        assert residency.transfers, "requests wait, nothing runs, and no copy is under way"
        start = self.parts.time_s()
        self.parts.link.wait(MAX_STALL_S)
        residency.counters.stall_s += self.parts.time_s() - start

    def accept(self, calls: list[Call]) -> None:
        """Take in checked calls."""
        failure: Exception | None = None
        for call in calls:
            try:
                self._accept(call)
            except Exception as error:
                failure = error
                if call.sequence is None or call.sequence.id not in self._open:
                    self._turn_away(call, error)
        if failure is not None:  # only now: the calls behind the one that failed are in as well
            self._begin_anew(failure)

    def _accept(self, call: Call) -> None:
        request, params = call.request, call.request.params
        call.digest = self._keys.prompt_digest(call.tokens, params)
        sequence = Sequence(
            id=next(self._ids),
            agent=request.agent,
            domain=None,
            tokens=call.tokens,
            prompt_len=len(call.tokens),
            limit=len(call.tokens) + params.max_tokens,
            params=params,
            adapter=call.adapter,
            key=self._keys.key(request.agent, call.digest, params, request.sample_index),
            stop_ids=frozenset(params.stop_token_ids)
            | (frozenset() if params.ignore_eos else self.parts.model.eos_ids),
            observer=call.observer if call.mailbox is None else call.mailbox,
            priority=request.priority,
        )
        guide = None if call.make_guide is None else call.make_guide()
        sequence.adjust = adjust_of(params, len(call.tokens), sequence.stop_ids, guide)
        if call.mailbox is not None:
            call.mailbox.announce = self._news.append
        if request.pooling is not None:
            sequence.pool_log = PoolLog(len(call.tokens), request.pooling)
        if params.logprobs is not None or params.prompt_logprobs is not None:
            sequence.score_log = ScoreLog(len(call.tokens), params)
        call.sequence = sequence
        self._open[sequence.id] = call
        if self.recorder is not None:
            step, at_s = self.clock.now, call.submitted_s
            self.recorder.begins(sequence.id, request.agent, step, at_s, call.tokens)
        if call.deadline_s is not None:
            heapq.heappush(self._deadlines, (call.deadline_s, sequence.id))
        if request.agent is not None:
            self.memory.misses.calls(request.agent, self.distances.next_use(request.agent))
            self._speaking.add(sequence.id)
            self._apply(self.distances.called(request.agent))
        leader = None if call.leader is None else call.leader.sequence
        if leader is None:
            self.scheduler.add(sequence)
        else:
            self.scheduler.add_behind(leader, sequence)

    def _turn_away(self, call: Call, cause: Exception) -> None:
        error = InternalError(f"the request could not be taken in: {cause!r}; ask again")
        error.__cause__ = cause
        self.stats.failed += 1
        self.on_ended([call])
        self.refuse([call], error)

    def refuse(self, calls: list[Call], error: Exception) -> None:
        """End calls that were never accepted."""
        for call in calls:
            call.error, call.done, call.ended_s = error, True, self.parts.time_s()
        deliver(calls)

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
        with ExitStack() as last:  # from below; whatever fails, who waits is told
            last.callback(deliver, calls + news)
            if calls:
                last.callback(self.on_ended, calls)
            for sequence, call in zip(ended, calls, strict=True):
                self._count(sequence, call)

    def _count(self, sequence: Sequence, call: Call) -> None:
        if self.recorder is not None:
            self.recorder.ends(sequence.id, sequence.agent, sequence.output)
        if sequence.error is None:
            if call.request.params.seed is None:
                self._keys.completed(sequence.agent, call.digest)
            self.stats.turns += 1
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
        if not self._deadlines:
            return
        now_s = self.parts.time_s()
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, id = heapq.heappop(self._deadlines)
            call = self._open.get(id)
            if call is not None:
                error = RequestTimeoutError(
                    f"request of agent {call.request.agent!r} did not end within "
                    f"timeout={call.request.timeout} s, or by deadline={call.request.deadline}"
                )
                self.end_call(call, "timeout", error)

    def end_call(
        self, call: Call, reason: Literal["cancelled", "timeout"], error: Exception
    ) -> None:
        """End ``call`` now; no effect on one that has ended."""
        if not call.done and (sequence := call.sequence) is not None:
            sequence.finish_reason, sequence.error = reason, error  # whatever breaks from here on
            self.scheduler.cancel(sequence, reason, error)

    def listen(self, source: Source) -> None:
        """Take ``source``'s advice from now on."""
        self._apply(self.distances.add(source))

    def poll_sources(self) -> None:
        """A source was told something."""
        self._apply(self.distances.poll())

    def expect(
        self, times: Mapping[AgentId, float], confidence: float = 1.0, *, absolute: bool
    ) -> None:
        """Hints: times of the clock if ``absolute``, else steps from now."""
        offset = 0.0 if absolute else self.clock.now
        if self.recorder is not None:
            for agent, steps in times.items():
                if math.isfinite(steps):
                    self.recorder.expects(agent, self.clock.now, offset + steps)
        self._apply(self.distances.expect_all(times, confidence, offset=offset))

    def wake(self, agent: AgentId) -> None:
        if self.recorder is not None:
            self.recorder.expects(agent, self.clock.now, self.clock.now)
        self._apply(self.distances.wake(agent))

    def advance(self, wall_s: float, to: float | None) -> None:
        """Move the clock; ``wall_s`` is when that was asked for."""
        if to is not None and to < self.clock.now:
            return  # another caller moved the clock past it meanwhile
        changes = self.distances.advance(wall_s, to=to)
        clock = self.clock
        self.memory.standing.now = clock.now
        if self.recorder is not None:
            self.recorder.ticks(clock.now)
        hint_jitter_s = self.distances.early_steps * (clock.seconds_per_step or 0.0)
        pace = Pace(clock.seconds_per_step, clock.jitter_s + hint_jitter_s, wall_s)
        self.memory.look_ahead.observe_tick(pace, idle=not self.scheduler.has_work)
        self._apply(changes)

    def _apply(self, changes: list[Change]) -> None:
        self.memory.owners.set_next_uses(changes)

    def end_all(self, cause: BaseException | None) -> None:
        """Nothing runs any more: every open call ends with ``EngineClosedError``, chained to
        ``cause`` if the engine died of something."""
        ended = list(self._open.values())
        for call in ended:
            error = EngineClosedError(
                "the engine was closed" if cause is None else f"the engine died: {cause!r}"
            )
            error.__cause__ = cause
            call.error, call.done = error, True
        self._open.clear()
        self.on_ended(ended)
        deliver(ended)

    def drain(self) -> None:
        """Let the steps and the copies under way end; call back what has not started."""
        while self._flights:  # a copy may wait for a step that was launched
            self.parts.runner.collect(self._flights.popleft())
        self.memory.residency.drain()
