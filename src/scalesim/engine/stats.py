"""What an engine counts."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

from scalesim.memory.manager import MemoryManager


@dataclass(slots=True)
class EngineStats:
    """Counts since the start. ``steps`` are the engine's; ``compute_s`` is the runner's time. From
    ``lookups`` on, they are memory's. How full the tiers are: ``Engine.memory.tiers``."""

    steps: int = 0
    calls: int = 0  # that gave a reply
    failed: int = 0  # calls that ended with an error
    prompt_tokens: int = 0  # of the calls that have ended
    cached_tokens: int = 0  # of the prompts, found in memory
    output_tokens: int = 0  # of the calls that have ended
    compute_s: float = 0.0
    restarts: int = 0  # something broke inside, and all state was made anew
    lost_pages: int = 0  # that left circulation for it, of both pools
    lookups: int = 0  # of prompts in memory: one a call, and one more after a preemption
    hits: int = 0  # look-ups that found something and waited for none of it
    waits: int = 0  # loads that a request waited for
    wait_s: float = 0.0  # in which nothing could run because of loads
    loaded_bytes: int = 0  # from the host to the device
    saved_bytes: int = 0  # from the device to the host
    spilled_bytes: int = 0  # from the host to the disk
    unspilled_bytes: int = 0  # from the disk to the host
    read_bytes: int = 0  # into pages from sources: adapters' folders, values' origins; failed too
    prefetched_bytes: int = 0  # of those loaded, before anybody asked
    prefetch_used_bytes: int = 0  # of those, asked for in time
    prefetch_wasted_bytes: int = 0  # of those, gone again before anybody asked
    evicted_bytes: int = 0  # that left the device
    dropped_bytes: int = 0  # of those, with no copy left
    preemptions: int = 0  # running requests that gave their pages to others

    def with_memory(self, memory: MemoryManager) -> EngineStats:
        """A copy, with what ``memory`` counts."""
        counters, size = memory.counters, memory.page_bytes
        return replace(
            self,
            lookups=counters.lookups,
            hits=counters.full_hits,
            waits=counters.demand_loads,
            wait_s=counters.stall_s,
            loaded_bytes=counters.loaded_pages * size,
            saved_bytes=counters.saved_pages * size,
            spilled_bytes=counters.spilled_pages * size,
            unspilled_bytes=(counters.staged_pages + counters.recalled_pages) * size,
            read_bytes=(counters.read_pages + counters.read_ahead_pages) * size,
            prefetched_bytes=counters.prefetched_pages * size,
            prefetch_used_bytes=counters.prefetch_used * size,
            prefetch_wasted_bytes=counters.prefetch_wasted * size,
            evicted_bytes=counters.evicted_pages * size,
            dropped_bytes=counters.dropped_pages * size,
            preemptions=counters.preemptions,
        )

    @property
    def turns(self) -> int:
        """The deprecated name of ``calls``."""
        warnings.warn("stats.turns is named calls now", DeprecationWarning, stacklevel=2)
        return self.calls
