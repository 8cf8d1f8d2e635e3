"""The published ScaleSim's planner, as a peer: distances in a few classes, a fixed look-ahead.

Made from its description and code (PanZaifeng/KVFlow, March 2026): distances are clipped to
``NUM_LEVELS`` classes without an order inside one; at each tick, whoever is needed within
``AHEAD_TICKS`` is loaded at once, and a load may evict what is needed sooner. What is better here
than there: the same link, copies and host tier as our own policies have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from scalesim.memory.eviction.policies import POLICIES, Policy, policy_named
from scalesim.memory.eviction.ranking import EvictionRanking, MakeRanking
from scalesim.memory.eviction.residency import Residency
from scalesim.memory.prefetch.config import PlannerConfig
from scalesim.memory.prefetch.planner import Forecast, MakePlanner
from scalesim.memory.prefetch.prefetcher import Prefetcher
from scalesim.memory.prefetch.queue import PrefetchQueue
from scalesim.memory.timing import Timing
from scalesim.memory.tree.prefix_tree import PrefixTree
from scalesim.memory.tree.segment import Segment
from scalesim.memory.tree.use import UseTime

NUM_LEVELS = 4
AHEAD_TICKS = 2.0  # its load_ahead_step
_FAR = 1e18

LEVELS = Policy("levels", order="next_use", host=True, look_ahead=True)
REPLAY_POLICIES = {
    policy.name: policy
    for name in POLICIES
    for policy in ((LEVELS, POLICIES[name]) if name == "oracle" else (POLICIES[name],))
}


def replay_policy(name: str) -> Policy:
    """The policy of a replay called ``name``; raises ``ConfigError`` with the names there are."""
    return policy_named(name, REPLAY_POLICIES)


class LevelsRanking(EvictionRanking):
    """Orders by class: whole ticks up to the last class, then far, then unknown; no order inside a
    class. ``tick`` puts what comes within the classes in order again."""

    def __init__(self, tree: PrefixTree, policy: Policy, timing: Timing) -> None:
        super().__init__(tree, policy, timing)
        self._enters: dict[Segment, float] = {}  # of what is far: when it is not any more

    def use_of(self, segment: Segment) -> UseTime:
        next_use, _ = self.next_use_of(segment)
        if next_use is None:
            level = float("inf")
        elif next_use - self.timing.now >= NUM_LEVELS:
            level = _FAR
            self._enters[segment] = next_use - NUM_LEVELS
        else:
            level = float(int(max(next_use, -_FAR)))
        return UseTime(level, segment.seq, segment.last_use, segment.last_seq)

    def forget(self, segment: Segment) -> None:
        super().forget(segment)
        self._enters.pop(segment, None)

    def tick(self) -> None:
        now = self.timing.now
        entered = [segment for segment, enters in self._enters.items() if enters <= now]
        for segment in entered:
            del self._enters[segment]
            self.refresh(segment)


class LevelsAhead(Prefetcher):
    """Acts once a tick."""

    def __init__(
        self,
        residency: Residency,
        queue: PrefetchQueue,
        config: PlannerConfig,
        read_rate: Callable[[], float],
    ) -> None:
        super().__init__(residency, queue, config, read_rate)
        self._planned_at = -1.0

    def load(self, wall_s: float, forecast: Forecast) -> None:
        residency, now = self.residency, self.residency.timing.now
        if now == self._planned_at:
            return
        self._planned_at = now
        assert isinstance(residency.ranking, LevelsRanking)
        residency.ranking.tick()
        while (agent := self.queue.peek()) is not None:
            if agent.next_use is None or agent.next_use - now > AHEAD_TICKS:
                return
            missing = self.missing(agent)
            count = sum(blocks for _, blocks in missing)
            if count and not self.start(agent, missing, residency.take(count)):
                residency.refused = False  # nobody waits for this
                return  # the first failure ends the round
            self.queue.discard(agent)


@dataclass(frozen=True, slots=True)
class Planning:
    """How a policy's memory orders what leaves, and plans what comes back."""

    make_ranking: MakeRanking = EvictionRanking
    make_planner: MakePlanner = Prefetcher


def planning_of(policy: Policy) -> Planning:
    return Planning(LevelsRanking, LevelsAhead) if policy is LEVELS else Planning()
