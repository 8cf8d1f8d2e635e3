"""Advice: the simulation's clock, and what users and sources say of agents' next calls.

On the loop's thread. Distances make one next use of all that is said; memory, which evicts and
prefetches by next uses, is told of each that changes. A recorder is told what users said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from scalesim.core import AgentId
from scalesim.distance.bursts import Bursts
from scalesim.distance.clock import Clock
from scalesim.distance.combine import Combine
from scalesim.distance.distances import Change, Distances
from scalesim.distance.voice import Voice
from scalesim.memory.manager import MemoryManager
from scalesim.trace.recorder import Recorder


class Advice:
    """``is_known`` tells whether an agent exists: nothing is heard of one that was forgotten
    between a hint and its turn in the inbox."""

    def __init__(
        self,
        memory: MemoryManager,
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
        self._apply(self.distances.listen(voice))

    def poll(self) -> None:
        """A source was told something."""
        self._apply(self.distances.poll())

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
        self._apply(self.distances.expect_all(times, confidence, offset=offset))

    def wake(self, agent: AgentId) -> None:
        """``agent`` calls at once, whatever was said before."""
        if not self._is_known(agent):
            return
        if self._recorder is not None:
            self._recorder.expects(agent, self.clock.now, self.clock.now)
        self._apply(self.distances.wake(agent))

    def pin(self, agents: Sequence[AgentId], until_s: float) -> None:
        """The state of ``agents`` counts as needed now until ``until_s``; it is loaded, and leaves
        after all other state. A pin holds no page: who needs the last one gets it."""
        agents = [agent for agent in agents if self._is_known(agent)]
        self._pinned.update(dict.fromkeys(agents, until_s))
        self._soonest_s = min(self._soonest_s, until_s)
        self._apply(self.distances.pin(agents))

    def let_go(self, agents: Sequence[AgentId]) -> None:
        """``agents`` are neither pinned nor put off any more."""
        agents = [agent for agent in agents if self._is_known(agent)]
        for agent in agents:
            self._pinned.pop(agent, None)
        self._apply(self.distances.let_go(agents))

    def put_off(self, agents: Sequence[AgentId]) -> None:
        """The state of ``agents`` leaves before all other, until they call or are spoken of again.
        Ends their pins."""
        agents = [agent for agent in agents if self._is_known(agent)]
        for agent in agents:
            self._pinned.pop(agent, None)
        self._apply(self.distances.put_off(agents))

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
        self._apply(changes)

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
        self._apply(self.distances.called(agent, more_calls))
        self._memory.called(agent, expected)

    def ended(self, agent: AgentId) -> None:
        """A call of ``agent`` is not open any more."""
        self._bursts.ended(agent)
        self._apply(self.distances.ended(agent))

    def forget(self, agents: Sequence[AgentId]) -> None:
        """``agents``, which have no open call, are gone."""
        if self._recorder is not None:
            self._recorder.forget(agents)
        for agent in agents:
            self._pinned.pop(agent, None)
            self._bursts.forget(agent)
        self._apply(self.distances.forget(agents))

    def _apply(self, changes: list[Change]) -> None:
        self._memory.hint(changes)
