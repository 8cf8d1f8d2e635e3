"""Load or rebuild: when state would be there if the link carried it, and when if it were computed.

Residency, look-ahead and leases ask. Rates are measured while running: nothing is assumed of a
machine, and until a prefill was seen everything is loaded.
"""

from __future__ import annotations

from scalesim.memory.links.link import Link
from scalesim.memory.timing import Timing


class LoadOrRecompute:
    """Seconds, counted from now. ``weighs``: the policy chooses; otherwise nothing is rebuilt that
    could be loaded. ``page_bytes``, ``block_size``: of a block on the link, and in tokens."""

    def __init__(
        self, link: Link, timing: Timing, page_bytes: int, block_size: int, *, weighs: bool
    ) -> None:
        self.weighs = weighs
        self._link, self._timing = link, timing
        self._page_bytes, self._block_size = page_bytes, block_size

    def rebuild_s(self, blocks: int) -> float:
        """To compute ``blocks``, once it is their turn; infinite as long as that is not known."""
        return self._timing.prefill_s(blocks * self._block_size)

    def worth_loading(self, blocks: int, needed_s: float = 0.0) -> int:
        """How many of ``blocks``, from the first on, to load for somebody who goes on in
        ``needed_s``: all, if they are there by then, or at least sooner than if the others were
        computed, or within an iteration of the loop; else those that are there by then."""
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
        """Whether somebody who needs the pages now should wait for ``blocks`` to be saved, and not
        let them be computed again later."""
        if not self.weighs:
            return True
        num_bytes = self._link.queued_bytes("out") + blocks * self._page_bytes
        worth_s = max(self._timing.usual_s, self.rebuild_s(blocks))
        return num_bytes / self._link.rate("out") <= worth_s
