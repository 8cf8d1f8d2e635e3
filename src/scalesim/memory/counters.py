"""What memory did, counted. Pages and bytes since the start; cheap enough to be always on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Blocks asked for by where they were found, pages moved by why, and what look-ahead was
    worth."""

    lookups: int = 0
    full_hits: int = 0  # look-ups that found something and had to wait for none of it
    device_blocks: int = 0  # found on the device
    host_blocks: int = 0  # found on the host: a demand load
    late_blocks: int = 0  # found on their way to the device
    computed_blocks: int = 0  # found nowhere: new, or to be rebuilt
    spared_blocks: int = 0  # of those: on the host, but sooner computed again than loaded
    demand_loads: int = 0
    loaded_pages: int = 0
    read_pages: int = 0  # of attachments, from their sources to the device, for who waited
    read_ahead_pages: int = 0  # of attachments, from their sources, before anybody asked
    saved_pages: int = 0
    evicted_pages: int = 0
    dropped_pages: int = 0  # evicted with no copy left
    prefetched_pages: int = 0
    prefetch_used: int = 0
    prefetch_wasted: int = 0
    copied_pages: int = 0  # copy-on-write
    failed_transfers: int = 0
    stale_completions: int = 0
    preemptions: int = 0
    stall_s: float = 0.0  # time in which nothing could run because of loads
