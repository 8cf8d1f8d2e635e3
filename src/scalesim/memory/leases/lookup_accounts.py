"""Lookup accounts: the record of how each prompt was found.

Counters, eviction ranking, miss reports and the prefetcher learn from these records. No lease
depends on them.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalesim.memory.counters import Counters
from scalesim.memory.eviction.ranking import EvictionRanking
from scalesim.memory.lease import Lease
from scalesim.memory.leases.prefix_match import PrefixMatch
from scalesim.memory.misses import Misses
from scalesim.memory.prefetch.planner import Planner
from scalesim.memory.prefetch.queue import PrefetchQueue
from scalesim.memory.tree.owner import AgentState
from scalesim.memory.tree.segment import Segment
from scalesim.memory.tree.walk import lineage


@dataclass(eq=False, slots=True)
class LookupAccounts:
    """Records prefix lookups where counters, rankings and the planner find them."""

    counters: Counters
    ranking: EvictionRanking
    misses: Misses
    planner: Planner
    queue: PrefetchQueue

    def record(self, lease: Lease, found: PrefixMatch, chain: list[Segment]) -> None:
        """Record the lookup ``found`` and the lease made of it; ``chain`` is the path of the
        lease."""
        counters, waited = self.counters, lease.num_waited_blocks
        end = found.cached_end
        if end is None or end.parent is None:  # evicted meanwhile, to make room for the lease
            end = lease.end
        matched = lineage(end)
        spared = sum(segment.num_blocks for segment in matched) - lease.num_shared
        for segment in matched:
            segment.record_hit()
        for segment in chain:
            counters.prefetch_used += segment.take_prefetched()
        counters.lookups += 1
        counters.full_hits += lease.num_shared > 0 and waited == 0
        counters.device_blocks += lease.num_shared - waited
        counters.host_blocks += found.num_to_load
        counters.disk_blocks += found.num_to_recall
        counters.late_blocks += waited - found.num_to_load
        counters.computed_blocks += -(-found.num_tokens // lease.block_size) - lease.num_shared
        counters.spared_blocks += spared
        if lease.agent is not None:
            self._record_agent(lease.agent, lease, found, end, spared)

    def _record_agent(
        self, agent: AgentState, lease: Lease, found: PrefixMatch, end: Segment, spared: int
    ) -> None:
        """Record the lookup for ``agent``, which called: its prompt is cached up to ``end``, and
        the last ``spared`` blocks of that are computed again instead of loaded."""
        waited = lease.num_waited_blocks
        missing = [each.num_blocks - each.device.valid for each in found.attached]
        attached = list(zip(found.specs, missing, strict=True))
        self.misses.record_lookup(lease, end, waited, spared, self.planner.blocked_by, attached)
        lease.record_rebuilt(spared + self.misses.num_lost(lease, end, found.num_tokens))
        agent.observe_reuse(end)
        newest = agent.newest_end
        if newest is not None and newest.parent is not None:  # what the call says of it counts now
            for segment in (newest, *newest.partials.values()):
                self.ranking.refresh(segment)
        if spared:
            self.queue.discard_load(agent)
