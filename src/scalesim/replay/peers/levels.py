"""The planner of the published ScaleSim, for comparison: distances in classes, a fixed look-ahead.

It follows the description and code (PanZaifeng/KVFlow, March 2026). Distances are clipped to
``NUM_LEVELS`` classes, without an order inside a class. At each tick, all agents that are needed
within ``AHEAD_TICKS`` are loaded at once, and a load may evict state that is needed sooner.
"""

from __future__ import annotations

from collections.abc import Callable

from scalesim.memory.eviction.policies import Policy
from scalesim.memory.eviction.ranking import EvictionRanking
from scalesim.memory.prefetch.config import PlannerConfig
from scalesim.memory.prefetch.planner import Forecast
from scalesim.memory.prefetch.prefetcher import Prefetcher, runs_of
from scalesim.memory.prefetch.queue import PrefetchQueue
from scalesim.memory.residency import Residency
from scalesim.memory.timing import Timing
from scalesim.memory.tree.next_use import NextUse
from scalesim.memory.tree.prefix_tree import PrefixTree
from scalesim.memory.tree.segment import Segment

NUM_LEVELS = 4
AHEAD_TICKS = 2.0  # its load_ahead_step
_FAR = 1e18

LEVELS = Policy("levels", order="next_use", host=True, look_ahead=True)


class LevelsRanking(EvictionRanking):
    """An eviction ranking by class: whole ticks up to the last class, then far, then unknown,
    without an order inside a class. ``tick`` ranks anew the segments that enter the classes."""

    def __init__(self, tree: PrefixTree, policy: Policy, timing: Timing) -> None:
        super().__init__(tree, policy, timing)
        self._enters: dict[Segment, float] = {}  # when each far segment enters the classes

    def next_use(self, segment: Segment) -> NextUse:
        next_use, _ = self.owners_next_use(segment)
        if next_use is None:
            level = float("inf")
        elif next_use - self.timing.now >= NUM_LEVELS:
            level = _FAR
            self._enters[segment] = next_use - NUM_LEVELS
        else:
            level = float(int(max(next_use, -_FAR)))
        return NextUse(level, segment.seq, segment.last_use, segment.last_seq)

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
    """A prefetcher that acts once per tick."""

    def __init__(
        self,
        residency: Residency,
        queue: PrefetchQueue,
        config: PlannerConfig,
        read_rate: Callable[[], float],
    ) -> None:
        super().__init__(residency, queue, config, read_rate)
        self._planned_at = -1.0

    def load(self, forecast: Forecast) -> None:
        residency, now = self.residency, self.residency.timing.now
        if now == self._planned_at:
            return
        self._planned_at = now
        assert isinstance(residency.ranking, LevelsRanking)
        residency.ranking.tick()
        while (agent := self.due.peek()) is not None:
            if agent.next_use is None or agent.next_use - now > AHEAD_TICKS:
                return
            wanted = self.blocks_on_host_only(agent)
            count = sum(blocks for _, blocks in wanted)
            pages = residency.take(count, runs=runs_of(wanted)) if count else None
            if count and not self.start(agent, wanted, pages):
                residency.clear_failure()  # no request waits for these pages
                return  # the first failure ends the round
            self.due.discard(agent)
