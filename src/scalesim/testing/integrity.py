"""Whether memory's books agree with each other: every page, pin, row, count and order, compared.

Counts by sets of unique page ids, never by sums of lengths. Called by tests after every operation,
and by whoever suspects memory. Raises ``IntegrityError`` with each term of the equation that does
not hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from scalesim.memory.agents import lineage
from scalesim.memory.lease import Lease
from scalesim.memory.manager import MemoryManager
from scalesim.memory.pool import PagePool
from scalesim.memory.segment import Segment, Transfer


class IntegrityError(AssertionError):
    """Two of memory's books differ."""


def check_integrity(manager: MemoryManager, leases: Iterable[Lease] = ()) -> None:
    """Check all invariants of ``manager``, given all ``leases`` that are open. O(pages + segments).
    Raises ``IntegrityError`` with the terms that differ."""
    held = list(leases)
    segments = list(manager.tree)
    _check_pools(manager, segments, held)
    _check_tree(manager, segments)
    _check_leases(manager, segments, held)
    _check_transfers(manager, segments, held)
    for segment in segments:
        _check_runs(segment)
        _check_orders(manager, segment)
        _check_owners(manager, segment, held)


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise IntegrityError(message)


def _check_pools(manager: MemoryManager, segments: list[Segment], leases: list[Lease]) -> None:
    holders: list[tuple[str, Sequence[int]]]
    holders = [(repr(segment), segment.device) for segment in segments]
    holders += [(f"private of row {lease.row}", lease.private) for lease in leases]
    _check_conservation("device", manager.device, holders)
    holders = [(repr(segment), segment.host) for segment in segments]
    _check_conservation("host", manager.host, holders)


def _check_conservation(
    tier: str, pool: PagePool, holders: Sequence[tuple[str, Sequence[int]]]
) -> None:
    pool.check()
    owner: dict[int, str] = {}
    for name, pages in holders:
        for page in pages:
            _expect(page not in owner, f"{tier} page {page}: {owner.get(page, name)} and {name}")
            owner[page] = name
    free = pool.free_pages()
    both = sorted(free & owner.keys())
    _expect(not both, f"{tier} pages {both} are free and held by {[owner[p] for p in both]}")
    lost = sorted(set(range(pool.first, pool.num_pages)) - free - owner.keys())
    _expect(
        not lost and len(free) + len(owner) == pool.num_usable,
        f"{tier}: {len(free)} free + {len(owner)} held != {pool.num_usable} usable; lost: {lost}",
    )


def _check_tree(manager: MemoryManager, segments: list[Segment]) -> None:
    tree = manager.tree
    _expect(len(segments) == tree.num_segments, f"{len(segments)} found, {tree.num_segments} kept")
    for segment in segments:
        parent = segment.parent
        assert parent is not None
        size = len(segment.tokens)
        if segment.is_tail:
            _expect(0 < size < tree.block_bytes, f"{segment}: a tail of {size} token bytes")
            _expect(segment in parent.tails.values(), f"{segment}: not its key's tail")
            _expect(not segment.children and not segment.tails, f"{segment}: a tail with children")
        else:
            if not segment.is_adapter:
                whole = segment.num_blocks * tree.block_bytes
                _expect(size == whole > 0, f"{segment}: {size} token bytes, {whole} in its blocks")
            key = segment.tokens[: tree.block_bytes] + segment.mark
            _expect(parent.children.get(key) is segment, f"{segment}: not its key's child")
        below = [*segment.children.values(), *segment.tails.values()]
        on_device = sum(bool(child.device) for child in below)
        anywhere = sum(bool(child.device or child.host) for child in below)
        _expect(
            (segment.device_children, segment.content_children) == (on_device, anywhere),
            f"{segment}: counts {segment.device_children} children on the device and "
            f"{segment.content_children} anywhere; {on_device} and {anywhere} are",
        )


def _check_runs(segment: Segment) -> None:
    """The picture in ``segment``'s module, and: only what is held may lack content."""
    load, save = _blocks_of(segment.load, segment), _blocks_of(segment.save, segment)
    _expect(
        segment.ready + load == len(segment.device) <= segment.num_blocks,
        f"{segment}: {segment.ready} ready + {load} loading != {len(segment.device)} device pages",
    )
    _expect(
        segment.saved + save == len(segment.host) <= segment.num_blocks,
        f"{segment}: {segment.saved} saved + {save} saving != {len(segment.host)} host pages",
    )
    reads = segment.load is not None and segment.is_adapter  # from its source
    _expect(
        len(segment.device) <= segment.saved or load == 0 or reads,
        f"{segment}: loads blocks that the host does not have",
    )
    _expect(
        segment.num_available == segment.num_blocks
        or segment.pins > 0
        or segment.source is not None
        or (segment.is_adapter and (segment.load or segment.save) is not None),
        f"{segment}: {segment.num_available} of its blocks are anywhere, and nobody holds it",
    )
    parent = segment.parent
    if parent is not None and not parent.is_root and (segment.device or segment.host):
        _expect(
            parent.num_available == parent.num_blocks,
            f"{segment} has content; its parent {parent} lacks some",
        )


def _blocks_of(transfer: Transfer | None, segment: Segment) -> int:
    if transfer is None:
        return 0
    counts = [count for part, count in transfer.parts if part is segment]
    _expect(len(counts) == 1 and counts[0] > 0, f"{segment}: has shares {counts} in its transfer")
    return counts[0]


def _check_leases(manager: MemoryManager, segments: list[Segment], leases: list[Lease]) -> None:
    pins = Counter(segment for lease in leases for segment in lineage(lease.end))
    pins.update(lease.borrowed for lease in leases if lease.borrowed is not None)
    pins.update(lease.adapter for lease in leases if lease.adapter is not None)
    for segment in {*segments, *pins}:
        _expect(
            segment.pins == pins[segment],
            f"{segment}: {segment.pins} pins, held by {pins[segment]} of {len(leases)} leases",
        )
    rows = {lease.row for lease in leases}
    adapters = {lease.adapter: lease.adapter_row for lease in leases if lease.adapter is not None}
    free = manager.table.num_free
    _expect(
        rows.isdisjoint(adapters.values()) and manager.adapters.num_rows == len(adapters),
        f"rows {sorted(rows)} of leases, {sorted(adapters.values())} of adapters",
    )
    rows |= set(adapters.values())
    _expect(
        len(rows) == len(leases) + len(adapters)
        and 0 not in rows
        and len(rows) + free == manager.table.num_rows - 1,
        f"rows {sorted(rows)} of {len(leases)} leases + {free} free != "
        f"{manager.table.num_rows - 1}",
    )
    for lease in leases:
        shared = sum(segment.num_blocks for segment in lineage(lease.end))
        _expect(shared == lease.num_shared, f"row {lease.row}: {lease.num_shared} != {shared}")
        if lease.is_ready and lease.failed is None:
            for segment in (*lineage(lease.end), *filter(None, [lease.adapter])):
                _expect(
                    segment.ready == segment.num_blocks,
                    f"row {lease.row} is ready, but {segment} is not",
                )


def _check_transfers(manager: MemoryManager, segments: list[Segment], leases: list[Lease]) -> None:
    residency = manager.residency
    moving: dict[int, Transfer] = {}
    for segment in segments:
        for transfer in (segment.load, segment.save):
            if transfer is not None:
                moving[id(transfer)] = transfer
                _expect(bool(transfer.tickets), f"{segment}: moves without a ticket")
    by_ticket = {id(transfer) for transfer in residency.transfers.values()}
    _expect(by_ticket == moving.keys(), f"{len(by_ticket)} transfers by ticket, {len(moving)} move")
    saving = sum(each.num_blocks for each in moving.values() if each.purpose == "save")
    _expect(saving == residency.saving_pages, f"{residency.saving_pages} saving, {saving} found")
    demand = sum(each.purpose == "demand" for each in moving.values())
    _expect(demand == residency.demand_waiting, f"{residency.demand_waiting} != {demand} demands")
    waits = Counter(id(waiter) for each in moving.values() for waiter in each.waiters)
    for lease in leases:
        _expect(
            lease.loads == waits[id(lease)],
            f"row {lease.row} waits for {lease.loads} loads; {waits[id(lease)]} know of it",
        )
    waiting = sum(
        len(lease.private) + lease.num_host_blocks for lease in leases if not lease.is_ready
    )
    _expect(waiting == manager.loading_pages, f"{manager.loading_pages} loading, {waiting} found")


def _check_orders(manager: MemoryManager, segment: Segment) -> None:
    """What could leave is known to those who look for room."""
    idle = segment.pins == 0 and segment.load is None and segment.save is None
    may_leave = idle and bool(segment.device) and segment.device_children == 0
    _expect(
        manager.standing.is_evictable(segment) == may_leave,
        f"{segment}: may leave the device: {may_leave}; in the order: {not may_leave}",
    )


def _check_owners(manager: MemoryManager, segment: Segment, leases: list[Lease]) -> None:
    """An owner of a segment has a path through it, a tail there, or is computing there now."""
    for owner in segment.owners:
        if segment.is_tail:
            continue
        known = any(segment in lineage(path) for path in owner.paths)
        active = any(lease.agent is owner and segment in lineage(lease.end) for lease in leases)
        _expect(known or active, f"{segment} is owned by {owner}, who has no path through it")
