"""Counters of memory: pages and lookups since the start. Cheap enough to be always on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Blocks asked for, by where they were found; pages moved, by why; and the use of
    prefetches."""

    lookups: int = 0
    full_hits: int = 0  # lookups that found something, all of it on the device
    device_blocks: int = 0  # found on the device
    host_blocks: int = 0  # found on the host: a demand load
    disk_blocks: int = 0  # of those: found on the disk
    late_blocks: int = 0  # found on their way to the device
    computed_blocks: int = 0  # found nowhere: new, or to be computed again
    spared_blocks: int = (
        0  # of the computed ones: on the host, but computing is sooner than loading
    )
    demand_loads: int = 0
    loaded_pages: int = 0
    read_pages: int = 0  # of attachments, from sources to the device, for waiting requests
    read_ahead_pages: int = 0  # of attachments, from sources, ahead of time
    saved_pages: int = 0
    spilled_pages: int = 0  # from the host to the disk
    staged_pages: int = 0  # from the disk to the host, ahead of time
    recalled_pages: int = 0  # from the disk to the host, for waiting requests
    evicted_pages: int = 0
    dropped_pages: int = 0  # evicted with no copy left
    prefetched_pages: int = 0
    prefetch_used: int = 0
    prefetch_wasted: int = 0
    copied_pages: int = 0  # copy-on-write
    compacted_pages: int = 0  # moved on the device, to make runs of consecutive pages
    failed_transfers: int = 0
    stale_completions: int = 0
    preemptions: int = 0
    stall_s: float = 0.0  # time in which nothing could run because of loads
