"""Load or recompute: which of the two has state ready sooner.

Residency, the prefetcher and the prefix lookup ask. Rates are measured while the engine runs; no
speed of a machine is assumed, and until the first prefill was measured everything is loaded.
"""

from __future__ import annotations

from scalesim.memory.links.link import Link
from scalesim.memory.timing import Timing


class LoadOrRecompute:
    """Compares the link's time with the time of a prefill, in seconds from now.

    Without ``weighs``, whatever can be loaded is loaded. A block is ``page_bytes`` on the link and
    ``block_size`` tokens."""

    def __init__(
        self, link: Link, timing: Timing, page_bytes: int, block_size: int, *, weighs: bool
    ) -> None:
        self.weighs = weighs
        self._link, self._timing = link, timing
        self._page_bytes, self._block_size = page_bytes, block_size

    def rebuild_s(self, blocks: int) -> float:
        """Seconds that a prefill of ``blocks`` takes once begun; infinite while not measured."""
        return self._timing.prefill_s(blocks * self._block_size)

    def num_worth_loading(self, blocks: int, needed_s: float = 0.0) -> int:
        """How many of ``blocks``, from the first on, to load for a request that starts in
        ``needed_s``.

        All, if the last one arrives in time, or is late by less than computing the late ones takes,
        or by less than an iteration of the loop; else the blocks that arrive in time."""
        if not self.weighs:
            return blocks
        block_s = self._page_bytes / self._link.rate("in")
        left_s = needed_s - self._link.queued_bytes("in") / self._link.rate("in")
        late_s = blocks * block_s - left_s
        if not late_s > 0.0:
            return blocks
        in_time = max(0, int(left_s / block_s))
        worth_s = max(self._timing.usual_s, self.rebuild_s(blocks - in_time))
        return blocks if late_s <= worth_s else in_time

    def is_worth_saving(self, blocks: int) -> bool:
        """Whether a request that needs the pages now should wait until ``blocks`` are saved, rather
        than have them computed again later."""
        if not self.weighs:
            return True
        num_bytes = self._link.queued_bytes("out") + blocks * self._page_bytes
        worth_s = max(self._timing.usual_s, self.rebuild_s(blocks))
        return num_bytes / self._link.rate("out") <= worth_s
