"""How often state was where it was needed, of an engine's own counts."""

from __future__ import annotations

import scalesim


def hit_rate(engine: scalesim.Engine) -> str:
    counts = engine.parts.memory.counters
    found = counts.device_blocks + counts.late_blocks + counts.host_blocks
    return (
        f"{engine.stats.calls} calls; of {found} blocks of state that were found, "
        f"{counts.device_blocks / max(1, found):.1%} were on the device; "
        f"{counts.demand_loads} calls waited for a load, "
        f"{counts.prefetch_used} of {counts.prefetched_pages} prefetched pages were used"
    )
