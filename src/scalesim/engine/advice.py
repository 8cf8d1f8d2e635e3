"""Advice: the simulation's clock, and what users and sources say of agents' next calls.

On the loop's thread. Distances make one next use of all that is said; memory, which evicts and
prefetches by next uses, is told of each that changes. A recorder is told what users said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from scalesim.core import AgentId
from scalesim.distance.bursts import Bursts
from scalesim.distance.clock import Clock
from scalesim.distance.combine import Combine
from scalesim.distance.distances import Change, Distances
from scalesim.distance.state import PlainState
from scalesim.distance.voice import Voice
from scalesim.trace.recorder import Recorder


class AdvisedMemory(Protocol):
    """What ``MemoryManager`` is told; see there."""

    def hint(self, next_uses: Sequence[Change]) -> None: ...

    def called(self, agent: AgentId, expected: float | None) -> None: ...

    def tick(self, now: float, tick_s: float | None) -> None: ...


class Advice:
    """``is_known`` tells whether an agent exists: nothing is heard of one that was forgotten
    between a hint and its turn in the inbox."""

    def __init__(
        self,
        memory: AdvisedMemory,
        combine: Combine,
        is_known: Callable[[AgentId], bool],
        recorder: Recorder | None,
    ) -> None:
        self.clock = Clock()
        self.distances = Distances(self.clock, combine, is_known)
        self._bursts = Bursts()
        self._memory, self._is_known, self._recorder = memory, is_known, recorder
        self._pinned: dict[AgentId, float] = {}  # until when, in seconds
        self._soonest_s = math.inf  # when the first of them ends

    def listen(self, voice: Voice) -> None:
        """Take the advice of a source from now on."""
        self.tell(self.distances.listen(voice))

    def poll(self) -> None:
        """A source was told something."""
        self.tell(self.distances.poll())

    def expect(
        self,
        times: Mapping[AgentId, float],
        confidence: float | Mapping[AgentId, float] = 1.0,
        *,
        absolute: bool,
    ) -> None:
        """Hints: times of the clock if ``absolute``, else ticks from now. ``confidence`` is one for
        all, or one for each."""
        times = {agent: time for agent, time in times.items() if self._is_known(agent)}
        offset = 0.0 if absolute else self.clock.now
        if self._recorder is not None:
            for agent, time in times.items():
                if math.isfinite(time):
                    self._recorder.expects(agent, self.clock.now, offset + time)
        self.tell(self.distances.expect_all(times, confidence, offset=offset))

    def wake(self, agent: AgentId) -> None:
        """``agent`` calls at once, whatever was said before."""
        if not self._is_known(agent):
            return
        if self._recorder is not None:
            self._recorder.expects(agent, self.clock.now, self.clock.now)
        self.tell(self.distances.wake(agent))

    def pin(self, agents: Sequence[AgentId], until_s: float) -> None:
        """The state of ``agents`` counts as needed now until ``until_s``; it is loaded, and leaves
        after all other state. A pin holds no page: who needs the last one gets it."""
        agents = [agent for agent in agents if self._is_known(agent)]
        self._pinned.update(dict.fromkeys(agents, until_s))
        self._soonest_s = min(self._soonest_s, until_s)
        self.tell(self.distances.pin(agents))

    def let_go(self, agents: Sequence[AgentId]) -> None:
        """``agents`` are neither pinned nor put off any more."""
        agents = [agent for agent in agents if self._is_known(agent)]
        for agent in agents:
            self._pinned.pop(agent, None)
        self.tell(self.distances.let_go(agents))

    def put_off(self, agents: Sequence[AgentId]) -> None:
        """The state of ``agents`` leaves before all other, until they call or are spoken of again.
        Ends their pins."""
        agents = [agent for agent in agents if self._is_known(agent)]
        for agent in agents:
            self._pinned.pop(agent, None)
        self.tell(self.distances.put_off(agents))

    def expire(self, now_s: float) -> None:
        """End the pins whose time is over."""
        if now_s < self._soonest_s:
            return
        over = [agent for agent, until_s in self._pinned.items() if until_s <= now_s]
        self.let_go(over)
        self._soonest_s = min(self._pinned.values(), default=math.inf)

    def pinned_until_s(self, agent: AgentId) -> float | None:
        """When the pin of ``agent`` ends; ``None`` without one."""
        return self._pinned.get(agent)

    def tick(self, wall_s: float, n: float, *, to: float | None) -> None:
        """Move the clock; ``wall_s`` is when that was asked for."""
        clock = self.clock
        if to is not None and to < clock.now:
            return  # another caller moved the clock past it meanwhile
        changes = self.distances.tick(wall_s, n, to=to)
        self._bursts.tick()
        if self._recorder is not None:
            self._recorder.ticks(clock.now)
        self._memory.tick(clock.now, clock.seconds_per_tick)
        self.tell(changes)

    def calls_to_come(self, agent: AgentId | None, more_calls: int | None) -> float:
        """How many calls ``agent`` is expected to make one after the other in this tick, from the
        one on that comes now; ``more_calls`` follow it, if that was told."""
        if more_calls is not None:
            return 1.0 + more_calls
        return 1.0 if agent is None else self._bursts.expected(agent)

    def called(self, agent: AgentId, more_calls: int | None = None) -> None:
        """A call of ``agent`` is open; ``more_calls`` follow in this tick, if that was told."""
        self._bursts.called(agent)
        expected = self.distances.next_use(agent)
        self.tell(self.distances.called(agent, more_calls))
        self._memory.called(agent, expected)

    def ended(self, agent: AgentId) -> None:
        """A call of ``agent`` is not open any more."""
        self._bursts.ended(agent)
        self.tell(self.distances.ended(agent))

    def forget(self, agents: Sequence[AgentId]) -> None:
        """``agents``, which have no open call, are gone."""
        if self._recorder is not None:
            self._recorder.forget(agents)
        for agent in agents:
            self._pinned.pop(agent, None)
            self._bursts.forget(agent)
        self.tell(self.distances.forget(agents))

    def state(self, now_s: float) -> PlainState:
        """The clock, what was said and learned of agents, and for how long they are pinned; at
        ``now_s`` seconds."""
        clock = self.clock
        return {
            "now": clock.now,
            "seconds_per_tick": clock.seconds_per_tick,
            "distances": self.distances.state(),
            "bursts": self._bursts.state(),
            "pins": [[agent, until_s - now_s] for agent, until_s in self._pinned.items()],
        }

    def restore(
        self, state: PlainState, now_s: float, voices: Iterable[Voice]
    ) -> tuple[list[Change], list[str]]:
        """Go on from what ``state`` gave, and listen to ``voices``, the first sources. Returns the
        next uses that memory is to be told, and the names of the sources whose knowledge is
        lost."""
        self.clock.restore(state["now"], state["seconds_per_tick"])
        self._bursts.restore(state["bursts"])
        self._pinned = {agent: now_s + left_s for agent, left_s in state["pins"]}
        self._soonest_s = min(self._pinned.values(), default=math.inf)
        changes = self.distances.restore(state["distances"])
        for voice in voices:
            changes += self.distances.listen(voice)
        more, lost = self.distances.give_up_kept()
        return changes + more, lost

    def tell(self, changes: Sequence[Change]) -> None:
        """Tell memory of ``changes``, in their order."""
        self._memory.hint(changes)
