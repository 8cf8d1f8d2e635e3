"""How often state was where it was needed, of an engine's own counts."""

from __future__ import annotations

from dataclasses import dataclass

import scalesim


@dataclass(frozen=True)
class HitRate:
    """Of ``found`` blocks of state, ``on_device`` were there when they were asked for, and
    ``waited`` calls had to wait for others. Of ``prefetched`` pages, ``used`` were asked for."""

    calls: int
    found: int
    on_device: int
    waited: int
    prefetched: int
    used: int

    def __str__(self) -> str:
        return (
            f"{self.calls} calls; of {self.found} blocks of state that were found, "
            f"{self.on_device / max(1, self.found):.1%} were on the device; {self.waited} calls "
            f"waited for a load; {self.used} of {self.prefetched} prefetched pages were used"
        )


def hit_rate(engine: scalesim.Engine) -> HitRate:
    """The hit rate of ``engine`` since its start."""
    counts = engine.parts.memory.counters
    return HitRate(
        engine.stats.calls,
        counts.device_blocks + counts.late_blocks + counts.host_blocks,
        counts.device_blocks,
        counts.demand_loads,
        counts.prefetched_pages,
        counts.prefetch_used,
    )
