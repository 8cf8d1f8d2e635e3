"""The replay of a simulation on the engine's loop.

A tick's calls are submitted together, and the next tick begins when all have ended. Within a tick,
an agent waits for its own earlier rounds only. Time is the link's virtual clock. ``Log`` keeps the
durations of ticks and the times to first tokens.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from scalesim.core import AgentId
from scalesim.distance.estimates import Source
from scalesim.distance.voice import voice_of
from scalesim.engine.loop import EngineLoop
from scalesim.engine.parts import EngineParts
from scalesim.memory.links.virtual_link import VirtualLink
from scalesim.replay.bound import Access, page_ids
from scalesim.replay.content import sampling_key, tokens_of
from scalesim.replay.leap import take_quiet_steps
from scalesim.replay.models import BoundModels
from scalesim.replay.runner import VirtualRunner
from scalesim.requests.call import Call
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams
from scalesim.scheduler.sequence import Phase
from scalesim.trace.trace import Hint, TraceCall, TraceTick


@dataclass(slots=True)
class Log:
    """Durations in virtual seconds: of each tick, from each call to its first token, and from its
    first admission to a slot to its first token. ``waited`` are the ids of the sequences that
    waited for loads, of requests with weights. ``accesses`` are the calls' page accesses by order
    of admission, if asked for."""

    tick_s: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    from_slot_s: list[float] = field(default_factory=list)
    turns: int = 0
    waited: set[int] = field(default_factory=set)
    accesses: dict[int, Access] = field(default_factory=dict)


class _Open:
    """An open call, which adds itself to ``ended`` when it ends."""

    def __init__(self, traced: TraceCall, call: Call, ended: list[_Open]) -> None:
        self.traced, self.call, self._ended = traced, call, ended
        self.loop: asyncio.AbstractEventLoop | None = None
        call.waiter = self

    def tell(self, call: Call) -> None:
        self._ended.append(self)


class Simulation:
    """Plays ticks on ``parts``, whose runner and clock are virtual.

    ``foresight`` replaces hints by the true times and numbers of calls. ``leap`` takes runs of
    decode steps at once. ``witness`` keeps the page accesses of every call. ``watch`` is called
    with the log whenever calls have ended. ``models`` have their weights in memory already.
    """

    def __init__(
        self,
        parts: EngineParts,
        *,
        sources: Iterable[Source] = (),
        foresight: bool = False,
        leap: bool = True,
        witness: bool = False,
        watch: Callable[[Log], None] = lambda log: None,
        models: BoundModels | None = None,
    ) -> None:
        assert isinstance(parts.runner, VirtualRunner) and isinstance(parts.link, VirtualLink)
        self.loop = EngineLoop(parts)
        for source in sources:
            self.loop.advice.listen(voice_of(source))
        self.log = Log()
        self.runner, self.link = parts.runner, parts.link
        self._foresight, self._leap, self._witness = foresight, leap, witness
        self._watch, self._models = watch, models
        self._pages: dict[int, int] = {}
        self._admitted_s: dict[int, float] = {}  # by order of admission: when, of open calls
        self._ended: list[_Open] = []
        self._open: dict[AgentId | None, int] = {}  # calls under way
        self._later: dict[AgentId | None, deque[TraceCall]] = {}  # rounds to come

    def tick(self, tick: TraceTick) -> None:
        """One tick of the simulation, to the end of its last call."""
        loop = self.loop
        start_s = self.link.now_s
        loop.advice.tick(start_s, 1.0, to=tick.time)
        self._tell(tick.hints)
        first: list[TraceCall] = []
        begun: dict[AgentId | None, int] = {}  # by agent: its first round in this tick
        for traced in tick.calls:
            waiting = self._later.get(traced.agent)
            if waiting is None and begun.setdefault(traced.agent, traced.round) == traced.round:
                first.append(traced)
            else:
                self._later.setdefault(traced.agent, deque()).append(traced)
        self._call(first)
        while self._open:
            self._iterate()
        self.log.tick_s.append(self.link.now_s - start_s)
        self.runner.ended_s.clear()

    def cached_pages(self, *, on_host: bool = False) -> set[int]:
        """The pages of a single model on the device and on their way there, by the ids of
        ``Log.accesses``; ``on_host``: those on the host as well."""
        found: set[int] = set()
        page_bytes = self.loop.memory.block_size * np.dtype(np.int32).itemsize
        for tokens in self.loop.memory.prefixes(on_host=on_host):
            found.update(page_ids(tokens, page_bytes, self._pages))
        return found

    # -- inside a tick ------------------------------------------------------------------------

    def _iterate(self) -> None:
        now_s, num_admitted = self.link.now_s, self.loop.scheduler.num_admissions
        alive = self.loop.step()
        for admission in range(num_admitted, self.loop.scheduler.num_admissions):
            self._admitted_s[admission + 1] = now_s
        assert alive or self._ended, f"{len(self._open)} agents wait and nothing is under way"
        if self._models is not None:
            running = self.loop.scheduler.slots.sequences.values()
            self.log.waited.update(each.id for each in running if each.phase is Phase.LOADING)
        if self._leap and not self._ended:
            take_quiet_steps(self.loop, self.runner, self.link)
        ended, self._ended[:] = list(self._ended), []
        for ended_call in ended:
            self._take(ended_call)
        if ended:
            self._watch(self.log)

    def _call(self, together: list[TraceCall]) -> None:
        loop, model = self.loop, self.loop.parts.model
        calls = []
        for traced in together:
            tokens = tokens_of(traced.prompt, model.vocab_size)
            params = SamplingParams(max_tokens=traced.output.length, seed=0, ignore_eos=True)
            more_calls = self._rounds_to_come(traced) if self._foresight else traced.more_calls
            request = Request(tokens, traced.agent, params, more_calls=more_calls)
            call = Call(request, model, tokens)
            if self._models is not None:
                page_bytes = loop.memory.page_bytes
                call.attachments = (self._models.attachment(traced.agent, page_bytes),)
            call.submitted_s = self.link.now_s
            _Open(traced, call, self._ended)
            calls.append(call)
            self._open[traced.agent] = self._open.get(traced.agent, 0) + 1
        loop.accept(calls)
        for traced, call in zip(together, calls, strict=True):
            assert call.sequence is not None
            call.sequence.key = sampling_key(traced.output, call.sequence.prompt_len)

    def _take(self, ended_call: _Open) -> None:
        """Record a call that ended, then submit its agent's next round or give its hint."""
        traced, call, log = ended_call.traced, ended_call.call, self.log
        sequence = call.sequence
        assert sequence is not None and call.error is None and sequence.first_step is not None
        log.turns += 1
        first_s = self.runner.ended_s[sequence.first_step]
        log.first_token_s.append(first_s - call.submitted_s)
        log.from_slot_s.append(first_s - self._admitted_s.pop(sequence.admission))
        if self._witness:
            self._see(call)
        self._open[traced.agent] -= 1
        if self._open[traced.agent]:
            return
        del self._open[traced.agent]
        again = self._next_round(traced.agent)
        if again:
            self._call(again)
        elif traced.agent is not None:
            self._tell([Hint(traced.agent, traced.expect, traced.truth)])

    def _next_round(self, agent: AgentId | None) -> list[TraceCall]:
        """The calls of the agent's next round; empty if the tick has no further round of it."""
        waiting = self._later.get(agent)
        if not waiting:
            return []
        together = [waiting.popleft()]
        while waiting and waiting[0].round == together[0].round:
            together.append(waiting.popleft())
        if not waiting:
            del self._later[agent]
        return together

    def _rounds_to_come(self, traced: TraceCall) -> int:
        return len({later.round for later in self._later.get(traced.agent, ())})

    def _see(self, call: Call) -> None:
        sequence = call.sequence
        assert sequence is not None
        size = self.loop.memory.block_size_of(call.attachments)
        tokens = call.tokens.tobytes() + sequence.output[:-1].tobytes()  # the last was not computed
        pages = page_ids(tokens, size * call.tokens.itemsize, self._pages)
        read = (sequence.prompt_len - 1) // size
        until = self.loop.scheduler.num_admissions
        preempted = sequence.num_preemptions > 0
        self.log.accesses[sequence.admission] = Access(pages, read, until, preempted)

    def _tell(self, hints: Iterable[Hint]) -> None:
        told = {
            hint.agent: time
            for hint in hints
            if (time := hint.truth if self._foresight else hint.expect) is not None
        }
        if told:
            self.loop.advice.expect(told, absolute=True)
