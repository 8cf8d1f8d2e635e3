"""Integrity: all invariants of memory, checked page by page, pin by pin and row by row.

Pages are compared as sets of ids, never as sums of lengths. The auditor calls this when the engine
is idle, and tests call it after every operation. ``counts`` has the checks that are cheap enough
for every step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from scalesim.memory.lease import Lease
from scalesim.memory.manager import MemoryManager
from scalesim.memory.pools.page_pool import Pool
from scalesim.memory.tree.run import TIERS, Run, Transfer
from scalesim.memory.tree.segment import Segment
from scalesim.memory.tree.walk import lineage


class IntegrityError(AssertionError):
    """Two of memory's records disagree."""


def check_integrity(manager: MemoryManager, leases: Iterable[Lease] = ()) -> None:
    """Check all invariants of ``manager``, given all open ``leases``. O(pages + segments). Raises
    ``IntegrityError`` with the values that disagree."""
    open_leases = list(leases)
    segments = list(manager.tree)
    _check_pools(manager, segments, open_leases)
    _check_tree(manager, segments)
    _check_leases(manager, segments, open_leases)
    _check_transfers(manager, segments, open_leases)
    for segment in segments:
        _check_runs(segment)
        _check_orders(manager, segment)
        _check_owners(manager, segment, open_leases)


def _check_pools(manager: MemoryManager, segments: list[Segment], leases: list[Lease]) -> None:
    private = [(f"private of row {lease.row}", lease.private) for lease in leases]
    for tier in manager.tiers:
        holders: list[tuple[object, Sequence[int]]] = [
            (segment, tier.run(segment)) for segment in segments
        ]
        holders += [*private, ("nobody, for good", sorted(tier.lost))]
        _check_conservation(tier.name, tier.pool, holders)
        private = []  # they are on the first tier


def _check_conservation(
    tier: str, pool: Pool, holders: Sequence[tuple[object, Sequence[int]]]
) -> None:
    """Each page of ``pool`` is free or has one holder. In arrays: a disk has millions of pages, and
    the engine stands still meanwhile."""
    pool.check()
    free, is_held = pool.free_mask(), np.zeros(pool.num_pages, np.bool_)
    held = np.fromiter(chain.from_iterable(pages for _, pages in holders), np.int64)
    outside = held[(held < pool.first) | (held >= pool.num_pages)].tolist()
    if outside:
        raise IntegrityError(f"{tier} pages {outside} are held by {_names(outside, holders)}")
    is_held[held] = True
    if np.count_nonzero(is_held) < len(held):
        twice = np.flatnonzero(np.bincount(held) > 1).tolist()
        raise IntegrityError(f"{tier} pages {twice} are held by {_names(twice, holders)}")
    both = np.flatnonzero(free & is_held).tolist()
    if both:
        raise IntegrityError(f"{tier} pages {both} are free and held by {_names(both, holders)}")
    lost = np.flatnonzero(~(free | is_held))
    lost = lost[lost >= pool.first].tolist()
    num_free = np.count_nonzero(free)
    if lost or num_free + len(held) != pool.num_usable:
        raise IntegrityError(
            f"{tier}: {num_free} free + {len(held)} held != {pool.num_usable} usable; lost: {lost}"
        )


def _names(pages: list[int], holders: Iterable[tuple[object, Sequence[int]]]) -> str:
    return " and ".join(f"{name}" for name, theirs in holders if not set(pages).isdisjoint(theirs))


def _check_tree(manager: MemoryManager, segments: list[Segment]) -> None:
    tree = manager.tree
    if len(segments) != tree.num_segments:
        raise IntegrityError(f"{len(segments)} found, {tree.num_segments} kept")
    for segment in segments:
        parent = segment.parent
        assert parent is not None
        if segment.block_size != parent.block_size:
            raise IntegrityError(
                f"{segment}: blocks of {segment.block_size} tokens, its parent's of "
                f"{parent.block_size}"
            )
        size = len(segment.tokens)
        if segment.is_partial:
            if not (0 < size < segment.block_bytes):
                raise IntegrityError(f"{segment}: a partial block of {size} token bytes")
            if segment not in parent.partials.values():
                raise IntegrityError(f"{segment}: not the partial block of its key")
            if segment.children or segment.partials:
                raise IntegrityError(f"{segment}: a partial block with children")
        else:
            if not segment.is_attachment:
                whole = segment.num_blocks * segment.block_bytes
                if not (size == whole > 0):
                    raise IntegrityError(f"{segment}: {size} token bytes, {whole} in its blocks")
            key = segment.tokens[: segment.block_bytes] + segment.mark
            if parent.children.get(key) is not segment:
                raise IntegrityError(f"{segment}: not its key's child")
        below = [*segment.children.values(), *segment.partials.values()]
        on_device = sum(bool(child.device) for child in below)
        anywhere = sum(bool(child.device or child.host or child.disk) for child in below)
        if (segment.device_children, segment.content_children) != (on_device, anywhere):
            raise IntegrityError(
                f"{segment}: counts {segment.device_children} children on the device and "
                f"{segment.content_children} anywhere; {on_device} and {anywhere} are"
            )


def _check_runs(segment: Segment) -> None:
    """The runs are as in the picture of ``memory.tree.segment``, and only a segment that a lease
    pins may have blocks without content."""
    for tier in TIERS:
        run: Run = getattr(segment, tier)
        coming = _blocks_of(run.transfer, segment)
        if not (run.valid + coming == len(run) <= segment.num_blocks):
            raise IntegrityError(
                f"{segment}: {run.valid} valid + {coming} coming != {len(run)} {tier} pages"
            )
    load = segment.device.transfer
    reads = segment.is_attachment  # from its source
    if not (load is None or len(segment.device) <= len(segment.host) or reads):
        raise IntegrityError(f"{segment}: loads blocks that the host does not have")
    read = segment.host.transfer
    is_read = read is not None and read.direction == "up"
    if is_read and len(segment.host) > segment.disk.valid:
        raise IntegrityError(f"{segment}: reads blocks that the disk does not have")
    if segment.disk.transfer is not None and len(segment.disk) > segment.host.valid:
        raise IntegrityError(f"{segment}: spills blocks that the host does not have")
    if not (
        segment.num_available == segment.num_blocks
        or segment.pins > 0
        or segment.source is not None
        or (segment.is_attachment and segment.is_moving)
    ):
        raise IntegrityError(
            f"{segment}: {segment.num_available} of its blocks are anywhere, and nobody holds it"
        )
    parent = segment.parent
    if parent is None or parent.is_root or not (segment.device or segment.host or segment.disk):
        return
    if parent.num_available != parent.num_blocks:
        raise IntegrityError(f"{segment} has content; its parent {parent} lacks some")


def _blocks_of(transfer: Transfer | None, segment: Segment) -> int:
    if transfer is None:
        return 0
    counts = [count for part, count in transfer.parts if part is segment]
    if not (len(counts) == 1 and counts[0] > 0):
        raise IntegrityError(f"{segment}: has shares {counts} in its transfer")
    return counts[0]


def _check_leases(manager: MemoryManager, segments: list[Segment], leases: list[Lease]) -> None:
    pins = Counter(segment for lease in leases for segment in lineage(lease.end))
    pins.update(lease.copy_source for lease in leases if lease.copy_source is not None)
    attachments = [attachment for lease in leases for attachment in lease.attachments]
    pins.update(attachment.segment for attachment in attachments)
    for segment in {*segments, *pins}:
        if segment.pins != pins[segment]:
            raise IntegrityError(
                f"{segment}: {segment.pins} pins, held by {pins[segment]} of {len(leases)} leases"
            )
    rows = {lease.row for lease in leases}
    attached = {attachment.segment: attachment.row for attachment in attachments}
    free = manager.table.num_free
    if not (rows.isdisjoint(attached.values()) and manager.attachments.num_rows == len(attached)):
        raise IntegrityError(
            f"rows {sorted(rows)} of leases, {sorted(attached.values())} of attachments"
        )
    rows |= set(attached.values())
    if not (
        len(rows) == len(leases) + len(attached)
        and 0 not in rows
        and len(rows) + free == manager.table.num_rows - 1
    ):
        raise IntegrityError(
            f"rows {sorted(rows)} of {len(leases)} leases + {free} free != "
            f"{manager.table.num_rows - 1}"
        )
    for lease in leases:
        shared = sum(segment.num_blocks for segment in lineage(lease.end))
        if shared != lease.num_shared:
            raise IntegrityError(f"row {lease.row}: {lease.num_shared} != {shared}")
        if lease.is_ready and lease.failed is None:
            of_others = (attachment.segment for attachment in lease.attachments)
            for segment in (*lineage(lease.end), *of_others):
                if not segment.is_ready:
                    raise IntegrityError(f"row {lease.row} is ready, but {segment} is not")


def _check_transfers(manager: MemoryManager, segments: list[Segment], leases: list[Lease]) -> None:
    residency = manager.residency
    moving: dict[int, Transfer] = {}
    for segment in segments:
        for transfer in (run.transfer for run in (segment.device, segment.host, segment.disk)):
            if transfer is not None:
                moving[id(transfer)] = transfer
                if not transfer.tickets:
                    raise IntegrityError(f"{segment}: moves without a ticket")
    by_ticket = {id(transfer) for transfer in residency.transfers.values()}
    if by_ticket != moving.keys():
        raise IntegrityError(f"{len(by_ticket)} transfers by ticket, {len(moving)} move")
    saving = sum(moved.num_blocks for moved in moving.values() if moved.purpose == "save")
    if saving != residency.transfers.saving_pages:
        raise IntegrityError(f"{residency.transfers.saving_pages} saving, {saving} found")
    spilling = sum(moved.num_blocks for moved in moving.values() if moved.purpose == "spill")
    if spilling != residency.transfers.spilling_pages:
        raise IntegrityError(f"{residency.transfers.spilling_pages} spilling, {spilling} found")
    demand = sum(moved.purpose == "demand" for moved in moving.values())
    if demand != residency.transfers.num_demand:
        raise IntegrityError(f"{residency.transfers.num_demand} != {demand} demands")
    waits = Counter(id(waiter) for moved in moving.values() for waiter in moved.waiters)
    for lease in leases:
        if lease.num_pending_loads != waits[id(lease)]:
            raise IntegrityError(
                f"row {lease.row} waits for {lease.num_pending_loads} loads; "
                f"{waits[id(lease)]} know of it"
            )
    waiting = sum(
        len(lease.private) + lease.num_host_blocks for lease in leases if not lease.is_ready
    )
    if waiting != manager.loading_pages:
        raise IntegrityError(f"{manager.loading_pages} loading, {waiting} found")


def _check_orders(manager: MemoryManager, segment: Segment) -> None:
    """The order of eviction has exactly the segments that may leave the device."""
    moves = segment.device.transfer is not None or segment.host.transfer is not None
    may_leave = (
        segment.pins == 0 and not moves and bool(segment.device) and segment.device_children == 0
    )
    if manager.ranking.is_evictable(segment) != may_leave:
        raise IntegrityError(
            f"{segment}: may leave the device: {may_leave}; in the order: {not may_leave}"
        )


def _check_owners(manager: MemoryManager, segment: Segment, leases: list[Lease]) -> None:
    """Each owner of a segment has a path through it, or computes one now."""
    for owner in segment.owners:
        if segment.is_partial:
            continue
        known = any(segment in lineage(path) for path in owner.paths)
        active = any(lease.agent is owner and segment in lineage(lease.end) for lease in leases)
        if not known and not active:
            raise IntegrityError(f"{segment} is owned by {owner}, who has no path through it")
