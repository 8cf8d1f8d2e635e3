"""Admission: a lease is given whole, or not at all.

Called by the manager. Looks up, reserves or leaves all as it was, then hands over: pages, loads, a
row of the block table, and the account of how the prompt was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scalesim.core import AgentId
from scalesim.memory.eviction.residency import Residency
from scalesim.memory.lease import AttachmentUse, Lease
from scalesim.memory.leases.attachments import Attachments
from scalesim.memory.leases.block_table import BlockTable
from scalesim.memory.leases.partial_blocks import PartialBlocks
from scalesim.memory.leases.prefix_lookup import PrefixLookup, PrefixMatch
from scalesim.memory.leases.waiters import LoadWaiters
from scalesim.memory.misses import Misses
from scalesim.memory.prefetch.owners import Owners
from scalesim.memory.prefetch.planner import Planner
from scalesim.memory.prefetch.queue import PrefetchQueue
from scalesim.memory.tree.owner import AgentState
from scalesim.memory.tree.segment import Segment, lineage


@dataclass(eq=False, slots=True)
class Admission:
    """What turns a request into a lease."""

    residency: Residency
    look_up: PrefixLookup
    tails: PartialBlocks
    loads: LoadWaiters
    attachments: Attachments
    owners: Owners
    misses: Misses
    queue: PrefetchQueue
    planner: Planner
    table: BlockTable

    def acquire(
        self,
        agent: AgentId | None,
        tokens: bytes,
        num_blocks: int,
        attachments: Sequence[AttachmentUse],
        max_loading_pages: int | None,
    ) -> Lease | None:
        """See ``MemoryManager.acquire``."""
        found = self.look_up.find(tokens, num_blocks, attachments)
        if (
            found.waits
            and max_loading_pages is not None
            and self.loads.num_pages + found.num_pages > max_loading_pages
        ):
            self._tidy(found.beyond)
            return None
        state = None if agent is None else self.owners.agent(agent)
        end = self.look_up.cut(found.path, found.root)
        found.tail = self.tails.find(end, tokens, found.num_shared, agent, found.branch)
        chain = lineage(end)
        pages = self._reserve(found, chain)
        if pages is None:
            self._tidy(end)
            self._tidy(found.beyond)
            return None
        return self._hand_over(found, chain, state, end, pages)

    def _reserve(self, found: PrefixMatch, chain: list[Segment]) -> list[int] | None:
        """Pin ``chain`` and what was found beside it, and take the pages that are needed besides;
        ``None``, and nothing is pinned, if they cannot be had now."""
        ranking, tail = self.residency.ranking, found.tail
        pinned = [*chain, *found.attached]
        for segment in pinned:
            ranking.pin(segment)
        if tail is not None:
            ranking.pin(tail.segment)
        moves = tail is not None and tail.moves
        pages = self.residency.take(found.num_pages - moves)
        if pages is None and tail is not None:
            ranking.unpin(tail.segment)
            if not moves:  # the page that it lies in may be the one that is missing
                found.tail = None
                pages = self.residency.take(found.num_pages)
        if pages is None:
            for segment in pinned:
                ranking.unpin(segment)
        return pages

    def _hand_over(
        self,
        found: PrefixMatch,
        chain: list[Segment],
        agent: AgentState | None,
        end: Segment,
        pages: list[int],
    ) -> Lease:
        """A lease of what was found and pinned, with ``pages`` for all that was not."""
        unread_pages, pages = pages[: found.unread], pages[found.unread :]
        missing_pages, private = pages[: found.missing], pages[found.missing :]
        late = found.num_shared - found.missing - sum(segment.device.valid for segment in chain)
        lease = Lease(
            agent,
            end,
            found.num_shared,
            private,
            self.table.allocate(),
            num_cached=found.num_shared * self.residency.tree.block_size,
            num_host_blocks=found.missing + found.unread,
            num_waited_blocks=found.missing + late,
            branch=found.branch,
        )
        if found.tail is not None:
            self.tails.take(lease, found.tail)
        self._account(lease, found, chain)
        chain.reverse()  # from the root on
        self.loads.start(lease, chain, missing_pages)
        self._write_row(lease, chain)
        for use, segment in zip(found.uses, found.attached, strict=True):
            count = segment.num_missing
            self.loads.start_attachment(lease, segment, unread_pages[:count])
            self.attachments.hold(lease, use, segment)
            unread_pages = unread_pages[count:]
        self.loads.wait(lease)
        return lease

    def _account(self, lease: Lease, found: PrefixMatch, chain: list[Segment]) -> None:
        """Write down how the prompt was found, and that the lease uses ``chain``: for the counters,
        for eviction, for the planner."""
        counters, waited = self.residency.counters, lease.num_waited_blocks
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
        num_blocks = -(-found.num_tokens // self.residency.tree.block_size)
        counters.computed_blocks += num_blocks - lease.num_shared
        counters.spared_blocks += spared
        if lease.agent is not None:
            self._account_agent(lease.agent, lease, found, end, spared)

    def _account_agent(
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

    def _write_row(self, lease: Lease, chain: list[Segment]) -> None:
        pages: list[int] = []
        for segment in chain:
            pages += segment.device
        assert len(pages) == lease.num_shared, (len(pages), lease.num_shared)
        self.table.write(lease.row, 0, pages + lease.private)

    def _tidy(self, end: Segment | None) -> None:
        """Undo the cut at ``end``, where nobody holds it."""
        if end is not None and end.parent is not None:
            self.residency.tidy(end)
