"""The engine loop, one iteration at a time, always on one thread: schedule a batch, plan loads,
launch the batch, collect the oldest step, settle the calls that ended.

Driven by ``EngineThread``, which brings calls, hints and ticks in the order in which they were
given. The loop itself knows no threads.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from scalesim.batch import NO_TOKEN, LaunchedStep
from scalesim.core import AgentId
from scalesim.distance.combine import Combine, earliest_credible
from scalesim.engine.advice import Advice
from scalesim.engine.open_calls import OpenCalls
from scalesim.engine.parts import EngineParts
from scalesim.engine.recovery import Recovery
from scalesim.engine.stats import EngineStats
from scalesim.engine.worlds import Worlds
from scalesim.foreign import Foreign
from scalesim.memory.audit.auditor import Auditor
from scalesim.requests.agent_registry import ForkedId
from scalesim.requests.bindings import Bindings
from scalesim.requests.call import Call
from scalesim.requests.limiter import RequestLimiter
from scalesim.sampling.embedding import EmbeddingLog
from scalesim.sampling.keys import SamplingKeys
from scalesim.sampling.logits import logits_processor_of
from scalesim.sampling.logprobs import LogprobsLog
from scalesim.scheduler.sequence import Sequence
from scalesim.trace.recorder import Recorder

MAX_STALL_S = 0.05


class EngineLoop:
    """Everything between an accepted call and its reply. ``step`` is the whole of it.

    ``limiter`` bounds the open calls; ``bindings`` are told of calls that ended, and when memory
    was emptied; ``is_known`` says whether an agent exists. All may be left out.
    """

    def __init__(
        self,
        parts: EngineParts,
        *,
        combine: Combine = earliest_credible,
        limiter: RequestLimiter | None = None,
        bindings: Iterable[Bindings[Any]] = (),
        recorder: Recorder | None = None,
        is_known: Callable[[AgentId], bool] = lambda agent: True,
    ) -> None:
        self.parts, self.recorder = parts, recorder
        self.memory, self.scheduler = parts.memory, parts.scheduler
        self.stats, self.keys = EngineStats(), SamplingKeys(parts.seed)
        self.advice = Advice(parts.memory, combine, is_known, recorder)
        self.clock, self.worlds = self.advice.clock, Worlds(self.advice)
        self.calls = OpenCalls(
            parts, self.stats, limiter or RequestLimiter(sys.maxsize), bindings, recorder
        )
        self.auditor = Auditor(self.memory, self.scheduler.leases, parts.integrity)
        self.recovery = Recovery(parts, self.auditor, self.stats, bindings)
        self._launched: deque[LaunchedStep] = deque()
        self._forgetting: frozenset[AgentId] = frozenset()  # agents that are being forgotten now
        self._ids = itertools.count(1)

    def step(self) -> bool:
        """One iteration; False when there is nothing to do. Raises only what cannot be mended."""
        is_busy = True
        with Foreign() as raised:
            is_busy = self._iterate()
            self.auditor.after_step()
            if not is_busy:
                self.auditor.when_idle()
        if raised.error is not None:
            self._begin_anew(raised.error)
            return True
        return is_busy

    def run_command(self, command: Callable[[], object]) -> None:
        """Do what a caller asked for."""
        with Foreign() as raised:
            command()
        if raised.error is not None:
            self._begin_anew(raised.error)

    def _begin_anew(self, error: BaseException) -> None:
        self.recovery.begin_anew(error, self._launched, self.calls.sequences, self._forgetting)
        self._forgetting = frozenset()
        self.calls.settle(self.scheduler.take_ended())

    # -- a step -------------------------------------------------------------------------------

    def _iterate(self) -> bool:
        self.calls.expire()
        self.worlds.expire(self.parts.time_s())
        if self.calls.can_enter:
            self.accept([])
        batch = self.scheduler.schedule()
        in_background = self.parts.runner.steps_in_flight > 1
        if not in_background:
            self.memory.plan(self.parts.time_s(), self.scheduler.forecast)
        if batch is not None:
            self._launched.append(self.parts.runner.launch(batch))
            self.stats.steps += 1
        if in_background:  # launched first: the step computes while loads are planned
            self.memory.plan(self.parts.time_s(), self.scheduler.forecast)
        is_full = len(self._launched) >= self.parts.runner.steps_in_flight
        if self._launched and (batch is None or is_full):
            output = self.parts.runner.collect(self._launched.popleft())
            self.stats.compute_s += output.compute_s
            self.scheduler.update(output)
            if self.recovery.awaits_token and output.token_ids.max(initial=NO_TOKEN) != NO_TOKEN:
                self.recovery.token_came()
        elif batch is None and self.scheduler.has_work and not self.scheduler.has_ended:
            self._stall()
        self.calls.settle(self.scheduler.take_ended())
        is_busy = batch is not None or bool(self._launched) or self.scheduler.has_work
        return is_busy or self.calls.can_enter

    def _stall(self) -> None:
        """Nothing can run until a copy arrives."""
        assert self.memory.is_moving, "requests wait, nothing runs, and no copy is under way"
        start = self.parts.time_s()
        self.parts.link.wait(MAX_STALL_S)
        self.memory.stalled(self.parts.time_s() - start)

    def drain(self) -> None:
        """Let the steps and the copies under way end; call back what has not started."""
        while self._launched:  # a copy may wait for a step that was launched
            self.parts.runner.collect(self._launched.popleft())
        self.memory.drain()

    # -- calls --------------------------------------------------------------------------------

    def accept(self, calls: list[Call]) -> None:
        """Take in checked calls, and those in line before them, as far as there are places. Memory
        is told of those first that go first. An error while a call's sequence is made ends that
        call alone; a later one broke state that all calls share: begin anew."""
        made: list[tuple[Call, Sequence]] = []
        for call in self.calls.enter(calls):
            with Foreign() as raised:
                made.append((call, self._sequence_of(call)))
            if raised.error is not None:
                self.calls.refuse_for(call, raised.error)
        failure: BaseException | None = None
        for call, sequence in sorted(made, key=lambda pair: -pair[1].work):
            with Foreign() as raised:
                self._accept(call, sequence)
            if raised.error is not None:
                failure = raised.error
        if failure is not None:  # only now: the calls behind the one that failed are in as well
            self._begin_anew(failure)

    def _accept(self, call: Call, sequence: Sequence) -> None:
        self.calls.add(call, sequence)
        if self.recorder is not None and not isinstance(sequence.agent, ForkedId):
            tick, at_s, more = self.clock.now, call.submitted_s, call.request.more_calls
            self.recorder.begins(sequence.id, sequence.agent, tick, at_s, call.tokens, more)
        if sequence.agent is not None:
            sequence.on_end = self.worlds.ended
            self.worlds.called(sequence.agent, call.request.more_calls)
        leader = None if call.leader is None else call.leader.sequence
        if leader is None:
            self.scheduler.add(sequence)
        else:
            self.scheduler.add_behind(leader, sequence)

    def _sequence_of(self, call: Call) -> Sequence:
        """``call`` in the form in which the scheduler knows it. Raises what refused it."""
        if call.error is not None:
            raise call.error
        request, params, tokens = call.request, call.request.params, call.tokens
        digest = call.digest
        if digest is None:
            digest = self.keys.prompt_digest(tokens, params)
        key = self.keys.key(request.agent, digest, params, request.sample_index, call.number or 0)
        agent, owner, leaves_nothing = request.agent, call.owner, False
        if owner is not None:  # forgotten since the call was handed in: it goes on as nobody's
            leaves_nothing, agent = owner.is_forgotten, None if owner.is_forgotten else owner.key
        stop_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= call.model.eos_ids
        constraint = None if call.make_constraint is None else call.make_constraint()
        is_scored = params.logprobs is not None or params.prompt_logprobs is not None
        sequence = Sequence(
            id=next(self._ids),
            agent=agent,
            tokens=tokens,
            prompt_len=len(tokens),
            limit=len(tokens) + params.max_tokens,
            params=params,
            attachments=call.attachments,
            salt=request.salt,
            key=key,
            stop_ids=stop_ids,
            observer=call.sink,
            logits_processor=logits_processor_of(params, len(tokens), stop_ids, constraint),
            priority=request.priority,
            leaves_nothing=leaves_nothing,
            embedding_log=None
            if request.pooling is None
            else EmbeddingLog(len(tokens), request.pooling),
            logprobs_log=LogprobsLog(len(tokens), params) if is_scored else None,
        )
        if self.clock.now > 0.0 and self.scheduler.config.order == "longest":
            num_calls = self.worlds.calls_to_come(agent, request.more_calls)
            sequence.work = self.scheduler.work.of(sequence, num_calls)
        return sequence

    # -- agents -------------------------------------------------------------------------------

    def forget(self, agents: list[AgentId]) -> None:
        """Nothing of ``agents`` is kept. Their open calls go on as nobody's."""
        self._forgetting = frozenset(agents)
        self.calls.disown(self._forgetting)
        self.worlds.forget(agents)
        for agent in agents:
            self.memory.forget(agent)
        self._forgetting = frozenset()
