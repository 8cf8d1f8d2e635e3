"""Tiers: the places where pages can be, the nearest to the compute first: the device, the host,
then the disk.

A segment has a run of pages on each tier, from its first block on. ``Residency`` decides what is on
which tier. Pools, audits and resets go over the list. A tier that an engine does not have is a pool
without pages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from operator import attrgetter
from typing import NamedTuple

from scalesim.core import TierName
from scalesim.memory.links.link import Link
from scalesim.memory.pools.page_pool import Pool
from scalesim.memory.tree.run import Run, Transfer
from scalesim.memory.tree.segment import Segment


class Tier:
    """One tier: a pool of pages, of which segments have ``num_held``. Pages that are ``lost`` stay
    out of circulation.

    ``link`` copies between this tier and the one above; the first tier has none. ``run(segment)``
    is the run of a segment on this tier.
    """

    def __init__(
        self,
        name: TierName,
        pool: Pool,
        link: Link | None = None,
        lost: Collection[int] = (),
    ) -> None:
        self.name, self.pool, self.link, self.lost = name, pool, link, frozenset(lost)
        self.run: Callable[[Segment], Run] = attrgetter(name)
        self.num_held = 0
        if lost:
            pages = pool.allocate(pool.num_free) or []
            pool.free([page for page in pages if page not in self.lost])

    def put(self, segment: Segment, pages: Sequence[int], transfer: Transfer | None = None) -> None:
        """See ``Segment.put``."""
        segment.put(self.name, pages, transfer)
        self.num_held += len(pages)

    def cut(self, segment: Segment, keep: int) -> list[int]:
        """See ``Segment.cut``. The caller frees the pages."""
        pages = segment.cut(self.name, keep)
        self.num_held -= len(pages)
        return pages


class TierUse(NamedTuple):
    """How full a tier is: pages that may be used, pages that are free."""

    name: TierName
    num_pages: int
    num_free: int


class Tiers(NamedTuple):
    """All tiers, in order."""

    device: Tier
    host: Tier
    disk: Tier
