"""How prompts were found, written down: for the counters, for eviction, for the planner.

Admission records each lease here; nothing that a request gets rests on it.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalesim.memory.counters import Counters
from scalesim.memory.lease import Lease
from scalesim.memory.leases.prefix_lookup import PrefixMatch
from scalesim.memory.misses import Misses
from scalesim.memory.prefetch.planner import Planner
from scalesim.memory.prefetch.queue import PrefetchQueue
from scalesim.memory.tree.owner import AgentState
from scalesim.memory.tree.segment import Segment, lineage


@dataclass(eq=False, slots=True)
class LookupAccounts:
    """The account of each look-up, and those who are told of it."""

    counters: Counters
    misses: Misses
    planner: Planner
    queue: PrefetchQueue
    block_size: int

    def record(self, lease: Lease, found: PrefixMatch, chain: list[Segment]) -> None:
        """Write down how the prompt was found, and that the lease uses ``chain``: for the counters,
        for eviction, for the planner."""
        counters, waited = self.counters, lease.num_waited_blocks
        end = found.beyond
        if end is None or end.parent is None:  # making room for the lease took it
            end = lease.end
        matched = lineage(end)
        spared = sum(segment.num_blocks for segment in matched) - lease.num_shared
        for segment in matched:
            segment.use()
        for segment in chain:
            counters.prefetch_used += segment.take_prefetched()
        counters.lookups += 1
        counters.full_hits += lease.num_shared > 0 and waited == 0
        counters.device_blocks += lease.num_shared - waited
        counters.host_blocks += found.missing
        counters.late_blocks += waited - found.missing
        counters.computed_blocks += -(-found.num_tokens // self.block_size) - lease.num_shared
        counters.spared_blocks += spared
        if lease.agent is not None:
            self._record_agent(lease.agent, lease, found, end, spared)

    def _record_agent(
        self, agent: AgentState, lease: Lease, found: PrefixMatch, end: Segment, spared: int
    ) -> None:
        """The same for the agent that called: its prompt was found up to ``end``, and the last
        ``spared`` blocks of that are computed again."""
        waited = lease.num_waited_blocks
        self.misses.looked_up(lease, end, waited, spared, self.planner.blocked_by)
        lease.rebuilds(spared + self.misses.num_lost(lease, end, found.num_tokens))
        if agent.next_use is not None:
            on_time = all(segment.is_ready for segment in found.attached)
            self.planner.observe_arrival(late=waited > 0 or not on_time)
        agent.observe_reuse(end)
        if spared:
            self.queue.give_up(agent)
