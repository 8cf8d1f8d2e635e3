"""The memory manager: leases. What a request may use of the pools, from its look-up to its release.

Called by the scheduler and the engine, on the engine's thread. This builds the parts that do the
work, and is the door to them. A lease pins the path of shared segments that the request's tokens
begin with, and owns the private pages behind it; its row of the block table lists both:

    row     | shared: pinned segments of the tree | private: this lease alone |
    block   0                          num_shared                      num_blocks
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from types import MappingProxyType

from scalesim.core import AgentId
from scalesim.memory.counters import Counters
from scalesim.memory.eviction.policies import Policy
from scalesim.memory.eviction.residency import Residency
from scalesim.memory.lease import AttachmentUse, Lease
from scalesim.memory.leases.adapters import ADAPTER, AdapterPages
from scalesim.memory.leases.admission import Admission
from scalesim.memory.leases.attachments import Attachments
from scalesim.memory.leases.block_table import BlockTable
from scalesim.memory.leases.leavings import Leavings
from scalesim.memory.leases.partial_blocks import PartialBlocks
from scalesim.memory.leases.prefix_lookup import PrefixLookup
from scalesim.memory.leases.release import Releases
from scalesim.memory.leases.waiters import LoadWaiters
from scalesim.memory.links.link import Link
from scalesim.memory.misses import Misses
from scalesim.memory.page_log import LoggedLink, LoggedPool, PageEventLog
from scalesim.memory.pools.page_pool import MakePool, PagePool, Pool
from scalesim.memory.prefetch.config import PlannerConfig
from scalesim.memory.prefetch.levels import LevelsAhead
from scalesim.memory.prefetch.owners import Owners
from scalesim.memory.prefetch.prefetcher import Prefetcher
from scalesim.memory.tiers import Tier, Tiers
from scalesim.memory.tree.prefix_tree import PrefixTree
from scalesim.memory.tree.segment import TierName

_PATIENCE_S = 1.0  # with a copy that does not end, when everything begins anew
NULL_PAGE = 0
"""Never allocated: where padded rows point and write."""


class MemoryManager:
    """One fixed device pool and one fixed host pool, shared by all agents.

    Device page 0 is the null page. ``num_rows`` is the size of the block table, row 0 being the
    dummy. ``record``: keep the last page events in ``flight``, to be read when something is wrong
    (those of the pools where ``make_pool`` is the default).
    """

    def __init__(
        self,
        *,
        block_size: int,
        page_bytes: int,
        device_pages: int,
        host_pages: int,
        num_rows: int,
        policy: Policy,
        link: Link,
        planner: PlannerConfig | None = None,
        make_pool: MakePool = PagePool,
        record: bool = True,
    ) -> None:
        self._make_pool = make_pool
        self.block_size, self.page_bytes, self.policy = block_size, page_bytes, policy
        self.flight = PageEventLog() if record else None
        self._link = LoggedLink(link, self.flight)
        self._device_pages, self._host_pages = device_pages, host_pages if policy.host else 0
        self._num_rows, self._planner = num_rows, planner or PlannerConfig()
        self.counters = Counters()
        self._build({})

    def _build(self, lost: Mapping[TierName, Collection[int]]) -> None:
        """Everything but the counters, as it is when nothing was ever computed."""
        policy, block_size = self.policy, self.block_size
        device = self._pool("device", self._device_pages, first=NULL_PAGE + 1)
        host = self._pool("host", self._host_pages, first=0)
        self.tiers = Tiers(
            Tier("device", device, lost=lost.get("device", ())),
            Tier("host", host, self._link, lost.get("host", ())),
        )
        self.tree = PrefixTree(block_size)
        self.table = BlockTable(self._num_rows)
        self.residency = Residency(
            self.tree,
            policy,
            self.tiers,
            self.page_bytes,
            self.counters,
        )
        ahead = LevelsAhead if policy.num_levels else Prefetcher
        self.prefetcher: Prefetcher = ahead(self.residency, self._planner)
        self.ranking = self.residency.ranking
        self.owners = Owners(self.tree, self.ranking, self.prefetcher)
        self.leavings = Leavings(self.residency)
        self.residency.on_eviction = self.owners.evicted
        self.residency.on_attachment_moved = self.owners.attachment_moved
        self.adapters = AdapterPages(self.residency, self.owners)
        kinds = {ADAPTER: self.adapters}
        self.attachments = Attachments(self.residency, self.table, kinds)
        self.misses = Misses(self.prefetcher, block_size)
        self.loads, self.tails = LoadWaiters(self.residency), PartialBlocks(self.residency)
        self.admission = Admission(
            self.residency,
            PrefixLookup(self.residency, self.attachments),
            self.tails,
            self.loads,
            self.attachments,
            self.owners,
            self.misses,
            self.prefetcher,
            self.table,
        )
        self.releases = Releases(
            self.residency,
            self.tails,
            self.loads,
            self.attachments,
            self.owners,
            self.misses,
            self.leavings,
            self.table,
        )

    def _pool(self, tier: TierName, num_pages: int, *, first: int) -> Pool:
        if self.flight is not None and self._make_pool is PagePool:
            return LoggedPool(num_pages, first=first, tier=tier, flight=self.flight)
        return self._make_pool(num_pages, first=first)

    def reset(self, lost: Mapping[TierName, Collection[int]] = MappingProxyType({})) -> None:
        """Begin anew, whatever state this is in: all leases and segments are forgotten,
        as if they had never been; what agents said of their next use stays. Nothing of the old
        state is trusted, so nothing of it is mended.

        No step is in flight. Pages given as lost, and those that a copy may still touch, leave
        circulation for good.
        """
        touched = self._link.abandon(timeout_s=_PATIENCE_S)
        all_lost = {
            tier.name: tier.lost.union(pages, lost.get(tier.name, ()))
            for tier, pages in zip(self.tiers, touched, strict=True)
        }
        ranking, ahead, owners, misses = self.ranking, self.prefetcher, self.owners, self.misses
        last_launched, costs = self.residency.last_launched, self.residency.costs
        self._build(all_lost)
        self.ranking.now, self.residency.last_launched = ranking.now, last_launched
        self.prefetcher.pace, self.misses.last = ahead.pace, misses.last
        self.prefetcher.starts_in, self.prefetcher.drains_in = ahead.starts_in, ahead.drains_in
        self.prefetcher.begin_at_once = ahead.begin_at_once
        self.prefetcher.reads.rate = ahead.reads.rate
        self.residency.costs.keep_rates(costs)
        for id, agent in owners.agents.items():
            self.owners.set_next_use(id, agent.next_use)

    @property
    def device(self) -> Pool:
        return self.tiers.device.pool

    @property
    def host(self) -> Pool:
        return self.tiers.host.pool

    @property
    def loading_pages(self) -> int:
        """Pages held by leases that wait for loads."""
        return self.loads.num_pages

    # -- a request's life ---------------------------------------------------------------------

    def acquire(
        self,
        agent: AgentId | None,
        domain: Hashable,
        tokens: bytes,
        num_blocks: int,
        *,
        attachments: Sequence[AttachmentUse] = (),
        max_loading_pages: int | None = None,
    ) -> Lease | None:
        """Find what is held of ``tokens`` (int32 as bytes), pin it, and reserve ``num_blocks`` in
        all.

        All or nothing: ``None`` if the pages cannot be had now. Look-up and pin are one act. Loads
        of what is on the host start at once; the lease is ready when they are over. At least the
        last token is left to compute. With ``max_loading_pages``, a lease that would have to load
        is refused when all waiting leases would then hold more.

        ``attachments`` are reserved, pinned and loaded with the rest. Raises ``AttachmentError``
        for one that there is not.
        """
        return self.admission.acquire(
            agent, domain, tokens, num_blocks, attachments, max_loading_pages
        )

    def grow(self, lease: Lease, num_blocks: int) -> bool:
        """Add private pages until the lease has ``num_blocks``; False, and no change, if they
        cannot be had now."""
        self.tails.give_back(lease)
        more = num_blocks - lease.num_blocks
        pages = self.residency.take(more)
        if pages is None:
            return False
        self.table.write(lease.row, lease.num_blocks, pages)
        lease.grow(pages)
        return True

    def commit(self, lease: Lease, tokens: bytes, num_tokens: int) -> None:
        """Put the full blocks of the first ``num_tokens`` tokens into the tree: their KV is written
        and the steps that wrote it were collected without a bad value."""
        self.releases.commit(lease, tokens, num_tokens)

    def release(self, lease: Lease, tokens: bytes = b"", num_tokens: int = 0) -> None:
        """End the lease. ``num_tokens`` of ``tokens`` have sound KV: full blocks stay in the tree,
        and the rest of one as the agent's tail; with 0, only what was shared already stays."""
        self.releases.release(lease, tokens, num_tokens)

    def fail(self, lease: Lease) -> None:
        """A load of this lease failed: release it, and forget what could not be read. Its tokens
        are rebuilt by the next ``acquire``."""
        assert lease.failed is not None
        self.release(lease)

    def poll(self) -> list[Lease]:
        """Take in finished copies; returns the leases that became ready, or failed
        (``lease.failed``)."""
        leases = self.loads.poll()
        self.leavings.clear_out()
        return leases

    def forget(self, agent: AgentId) -> None:
        """Nothing is ``agent``'s any more. What nobody else owns goes from both tiers: at once, or
        when the last lease and the last copy let go of it; leases that the agent has go on, and
        leave nothing to it. Whoever comes under this id later is another."""
        self.misses.forget(agent)
        self.leavings.add(self.owners.drop(agent))

    def leave_nothing(self, lease: Lease) -> None:
        """``lease``, fresh and nobody's, goes with all that is computed under it and not shared."""
        lease.leave_nothing(self.owners.nobody())

    def clear(self) -> None:
        """Forget everything that no lease holds and no copy touches: it would be rebuilt from its
        tokens. Once every lease is released and ``poll`` has taken in every copy, all pages are
        free."""
        self.residency.clear()
