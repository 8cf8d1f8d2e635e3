"""The published ScaleSim's planner, as a peer: distances in a few classes, a fixed look-ahead.

Made from its description and code (PanZaifeng/KVFlow, March 2026): distances are clipped to
``NUM_LEVELS`` classes without an order inside one; at each tick, whoever is needed within
``AHEAD_TICKS`` is loaded at once, and a load may evict what is needed sooner. What is better here
than there: the same link, copies and host tier as our own policies have.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from scalesim.memory.eviction.residency import Residency
from scalesim.memory.prefetch.config import PlannerConfig
from scalesim.memory.prefetch.prefetcher import Prefetcher
from scalesim.memory.tree.owner import AgentState
from scalesim.memory.tree.segment import lineage

AHEAD_TICKS = 2.0  # its load_ahead_step


class LevelsAhead(Prefetcher):
    """Acts once a tick. Agents that come within the classes are put in order again then."""

    def __init__(self, residency: Residency, config: PlannerConfig) -> None:
        super().__init__(residency, config)
        self._entering: list[tuple[float, int, AgentState]] = []
        self._most = 64  # entries, before the stale ones go
        self._planned_at = -1.0

    def await_agent(self, agent: AgentState) -> None:
        super().await_agent(agent)
        if agent.next_use is not None:
            enters = agent.next_use - self._residency.ranking.num_levels
            if enters > self._residency.ranking.now:
                heapq.heappush(self._entering, (enters, agent.next_seq, agent))
                if len(self._entering) > self._most:
                    self._sweep()

    def _sweep(self) -> None:
        """Drop the entries of who has another next use by now, or none."""
        live = {seq: (at, seq, who) for at, seq, who in self._entering if _is_live(who, seq)}
        self._entering = sorted(live.values())
        self._most = 2 * len(live) + 64

    def await_agents(self, agents: Sequence[AgentState]) -> None:
        for agent in agents:
            self.await_agent(agent)

    def _load(self, wall_s: float) -> None:
        now = self._residency.ranking.now
        if now == self._planned_at:
            return
        self._planned_at = now
        while self._entering and self._entering[0][0] <= now:
            self._reorder(heapq.heappop(self._entering)[2])
        while (agent := self._awaited.peek()) is not None:
            if agent.next_use is None or agent.next_use - now > AHEAD_TICKS:
                return
            missing = self._missing(agent)
            count = sum(blocks for _, blocks in missing)
            if count and not self._start(agent, missing, self._residency.take(count)):
                self._residency.refused = False  # nobody waits for this
                return  # the first failure ends the round
            self._awaited.discard(agent)

    def _reorder(self, agent: AgentState) -> None:
        for end in agent.paths:
            for segment in lineage(end):
                self._residency.ranking.refresh(segment)


def _is_live(agent: AgentState, seq: int) -> bool:
    return agent.next_use is not None and agent.next_seq == seq
