"""Page accounts: do free pages, pages in the tree and private pages add up? Cheap enough for every
step. If they do not, which pages are suspect?

``check_integrity`` compares everything; this file only counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter

import numpy as np

from scalesim.core import TierName
from scalesim.memory.lease import Lease
from scalesim.memory.manager import MemoryManager
from scalesim.memory.pools.page_pool import Pool


class AccountError(AssertionError):
    """The free pages and the pages in use do not add up to the pages of a pool."""


def check_accounts(manager: MemoryManager, leases: Iterable[Lease]) -> None:
    """Compare the counts of each tier, given all open ``leases``. O(leases). Raises
    ``AccountError`` with each term of the sum."""
    private = sum(map(len, map(attrgetter("private"), leases)))
    for tier in manager.tiers:
        pool, lost = tier.pool, len(tier.lost)
        if pool.num_free + tier.num_held + private + lost != pool.num_usable:
            raise AccountError(
                f"{tier.name}: {pool.num_free} free + {tier.num_held} in the tree + {private} "
                f"private + {lost} lost != {pool.num_usable} usable"
            )
        private = 0  # they are on the first tier


@dataclass(frozen=True, slots=True)
class Suspects:
    """Pages that have no user or more than one, by tier, and the leases that use such a page."""

    pages: dict[TierName, set[int]] = field(default_factory=dict)
    leases: list[Lease] = field(default_factory=list)


def find_suspects(manager: MemoryManager, leases: Iterable[Lease]) -> Suspects:
    """Look at every page of every pool. O(pages + segments). Relies on no count."""
    open_leases = list(leases)
    private = [lease.private for lease in open_leases]
    suspects = Suspects()
    for tier in manager.tiers:
        runs = [tier.run(segment) for segment in manager.tree]
        suspects.pages[tier.name] = _odd(tier.pool, [*runs, *private, sorted(tier.lost)])
        private = []  # they are on the first tier
    odd = suspects.pages["device"]
    suspects.leases.extend(lease for lease in open_leases if not odd.isdisjoint(_pages_of(lease)))
    return suspects


def _odd(pool: Pool, holders: Iterable[Sequence[int]]) -> set[int]:
    count = Counter(chain.from_iterable(holders))
    times = pool.free_mask().astype(np.int64)
    for page in count.keys() & range(pool.num_pages):
        times[page] += count[page]
    odd: list[int] = np.flatnonzero(times != 1).tolist()
    return {page for page in odd if page >= pool.first}


def _pages_of(lease: Lease) -> Iterable[int]:
    yield from lease.private
    node = lease.end
    while node.parent is not None:
        yield from node.device
        node = node.parent
    for attachment in lease.attachments:
        yield from attachment.segment.device
