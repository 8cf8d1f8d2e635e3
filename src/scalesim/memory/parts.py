"""The parts of memory: which there are, which part uses which, and how all of them begin anew.

Only construction is here; ``MemoryManager`` has the operations.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

from scalesim.core import TierName
from scalesim.memory.compaction import MovePages
from scalesim.memory.counters import Counters
from scalesim.memory.eviction.policies import Policy
from scalesim.memory.eviction.ranking import EvictionRanking, MakeRanking
from scalesim.memory.lease import ADAPTER, WEIGHTS
from scalesim.memory.leases.adapters import AdapterPages
from scalesim.memory.leases.admission import Admission
from scalesim.memory.leases.attachments import AttachmentKind, Attachments
from scalesim.memory.leases.blobs import BlobPages
from scalesim.memory.leases.block_table import BlockTable
from scalesim.memory.leases.lookup_accounts import LookupAccounts
from scalesim.memory.leases.orphans import Orphans
from scalesim.memory.leases.partial_blocks import PartialBlocks
from scalesim.memory.leases.prefix_lookup import PrefixLookup
from scalesim.memory.leases.release import Releases
from scalesim.memory.leases.waiters import LoadWaiters
from scalesim.memory.leases.weights import WeightPages
from scalesim.memory.links.link import Link
from scalesim.memory.misses import Misses
from scalesim.memory.owners import Owners
from scalesim.memory.page_log import LoggedLink, LoggedPool, PageEventLog
from scalesim.memory.pools.page_pool import MakePool, PagePool, Pool
from scalesim.memory.prefetch.attachment_reads import ASSUMED_BYTES_PER_S
from scalesim.memory.prefetch.config import PlannerConfig
from scalesim.memory.prefetch.planner import MakePlanner
from scalesim.memory.prefetch.prefetcher import Prefetcher
from scalesim.memory.prefetch.queue import PrefetchQueue
from scalesim.memory.residency import Residency
from scalesim.memory.tiers import Tier, Tiers
from scalesim.memory.timing import Timing
from scalesim.memory.tree.prefix_tree import PrefixTree

_PATIENCE_S = 1.0  # how long a reset waits for a copy that does not end
NULL_PAGE = 0
"""Never allocated. Padded rows of a batch read and write it."""


class MemoryParts:
    """The parts of one manager's memory.

    Device page 0 is the null page. A page holds ``block_size`` tokens of KV of the engine's own
    model; a request says how many of another model's (``AttachmentSpec``). ``num_rows`` is the size
    of the block table, with row 0 as the dummy. ``read_rate`` gives the bytes a second at which
    sources are read. ``make_ranking`` and ``make_planner`` replace the eviction order and the
    planner. ``record``: keep the last page events in ``page_log``, to be read after a fault (events
    of the pools only where ``make_pool`` is the default). ``move_pages`` copies pages on the
    device, for state that has to lie on consecutive pages; without it, such state waits for a run
    that is free.

    ``timing``, ``counters``, ``misses`` and ``page_log`` last as long as the manager; ``reset``
    makes the other parts anew.
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
        disk_pages: int = 0,
        planner_config: PlannerConfig | None = None,
        read_rate: Callable[[], float] = lambda: ASSUMED_BYTES_PER_S,
        make_pool: MakePool = PagePool,
        make_ranking: MakeRanking = EvictionRanking,
        make_planner: MakePlanner = Prefetcher,
        record: bool = True,
        move_pages: MovePages | None = None,
    ) -> None:
        self._make_pool, self._make_ranking = make_pool, make_ranking
        self._make_planner, self._planner_config = make_planner, planner_config or PlannerConfig()
        self._read_rate, self._move_pages = read_rate, move_pages
        self.block_size, self.page_bytes, self.policy = block_size, page_bytes, policy
        self.page_log = PageEventLog() if record else None
        self._link = LoggedLink(link, self.page_log)
        self._device_pages, self._host_pages = device_pages, host_pages if policy.host else 0
        self._disk_pages = disk_pages if self._host_pages else 0
        self._num_rows = num_rows
        self.counters, self.timing = Counters(), Timing()
        self.misses = Misses(self.timing)
        self._build({})

    def _build(self, lost: Mapping[TierName, Collection[int]]) -> None:
        """Make the parts that know pages and agents, empty. Pages that are ``lost`` stay out of
        circulation."""
        self.device = self._pool("device", self._device_pages, first=NULL_PAGE + 1)
        self.host = self._pool("host", self._host_pages, first=0)
        self.disk = self._pool("disk", self._disk_pages, first=0)
        self.tiers = Tiers(
            Tier("device", self.device, lost=lost.get("device", ())),
            Tier("host", self.host, self._link, lost.get("host", ())),
            Tier("disk", self.disk, self._link, lost.get("disk", ())),
        )
        self.tree, self.table = PrefixTree(self.block_size), BlockTable(self._num_rows)
        self.ranking = ranking = self._make_ranking(self.tree, self.policy, self.timing)
        queue = PrefetchQueue(
            self.timing, enabled=self.policy.look_ahead, has_disk=self._disk_pages > 0
        )
        self.owners = owners = Owners(self.tree, ranking, queue)
        self.residency = residency = Residency(
            self.tree, ranking, owners, self.tiers, self.page_bytes, self.counters, self.timing,
            self._move_pages,
        )  # fmt: skip
        self.planner = self._make_planner(residency, queue, self._planner_config, self._read_rate)
        self.orphans, self.adapters = Orphans(residency), AdapterPages(residency, owners)
        self.blobs = BlobPages(residency, owners, self.orphans)
        self.weights = WeightPages(residency, owners)
        kinds: dict[str, AttachmentKind] = {ADAPTER: self.adapters, WEIGHTS: self.weights}
        self.attachments = Attachments(residency, self.table, kinds)
        self.waiters, self.partial_blocks = LoadWaiters(residency), PartialBlocks(residency)
        shared = (
            residency,
            self.table,
            owners,
            self.attachments,
            self.partial_blocks,
            self.waiters,
        )
        accounts = LookupAccounts(self.counters, ranking, self.misses, self.planner, queue)
        self.admission = Admission(*shared, PrefixLookup(residency, self.attachments), accounts)
        self.releases = Releases(*shared, self.misses, self.orphans)

    def _pool(self, tier: TierName, num_pages: int, *, first: int) -> Pool:
        if self.page_log is not None and self._make_pool is PagePool:
            return LoggedPool(num_pages, first=first, tier=tier, log=self.page_log)
        return self._make_pool(num_pages, first=first)

    def reset(self, lost: Mapping[TierName, Collection[int]] = MappingProxyType({})) -> None:
        """Begin anew, whatever state memory is in: all leases and segments are forgotten, and only
        the next uses of agents are kept, and the names of blobs with their sources; blobs without
        are lost. No other old state is read, since none can be trusted.

        No step may be under way. Pages given as ``lost``, and pages that a copy may still use, are
        taken out of circulation.
        """
        touched = self._link.cancel_all(timeout_s=_PATIENCE_S)
        all_lost = {
            tier.name: tier.lost.union(pages, lost.get(tier.name, ()))
            for tier, pages in zip(self.tiers, touched, strict=True)
        }
        next_uses, blobs = self.owners.next_uses(), self.blobs.books()
        self._build(all_lost)
        self.owners.set_next_uses(next_uses)
        self.blobs.begin_from(blobs)
