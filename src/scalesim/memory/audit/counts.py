"""Memory's accounts: do the pages that are free, in the tree and private add up? Cheap enough for
every step; and, when they do not, which pages are in question.

Called by whoever drives an engine. ``integrity`` compares everything; this only counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from scalesim.memory.lease import Lease
from scalesim.memory.manager import MemoryManager
from scalesim.memory.pools.page_pool import Pool


class AccountError(AssertionError):
    """Pages that are free and pages that are held do not add up to the pages there are."""


def check_accounts(manager: MemoryManager, leases: Iterable[Lease]) -> None:
    """Compare the counts, given every open lease. O(leases); raises ``AccountError`` with each term
    of the equation that does not hold."""
    device, host, tree = manager.device, manager.host, manager.tree
    private = sum(map(len, map(attrgetter("private"), leases)))
    lost = len(manager.device_lost)
    if device.num_free + tree.num_pages["device"] + private + lost != device.num_usable:
        raise AccountError(
            f"device: {device.num_free} free + {tree.num_pages['device']} in the tree + {private} "
            f"private + {lost} lost != {device.num_usable} usable"
        )
    lost = len(manager.host_lost)
    if host.num_free + tree.num_pages["host"] + lost != host.num_usable:
        raise AccountError(
            f"host: {host.num_free} free + {tree.num_pages['host']} in the tree + {lost} lost != "
            f"{host.num_usable} usable"
        )


@dataclass(frozen=True, slots=True)
class Suspects:
    """Pages that have not exactly one holder, and the leases that use one of them."""

    device: set[int] = field(default_factory=set)
    host: set[int] = field(default_factory=set)
    leases: list[Lease] = field(default_factory=list)


def find_suspects(manager: MemoryManager, leases: Iterable[Lease]) -> Suspects:
    """Look at every page of both pools. O(pages + segments); trusts no count."""
    open_leases = list(leases)
    segments = list(manager.tree)
    on_device = [
        *(holder.device for holder in segments),
        *(holder.private for holder in open_leases),
    ]
    device = _odd(manager.device, [*on_device, sorted(manager.device_lost)])
    host = _odd(manager.host, [*(holder.host for holder in segments), sorted(manager.host_lost)])
    return Suspects(
        device, host, [holder for holder in open_leases if device.intersection(_pages_of(holder))]
    )


def _odd(pool: Pool, holders: Iterable[Sequence[int]]) -> set[int]:
    count = Counter(pool.free_pages())
    for pages in holders:
        count.update(pages)
    every = range(pool.first, pool.num_pages)
    return {page for page in every if count[page] != 1}


def _pages_of(lease: Lease) -> Iterable[int]:
    yield from lease.private
    node = lease.end
    while node.parent is not None:
        yield from node.device
        node = node.parent
    if lease.adapter is not None:
        yield from lease.adapter.device
