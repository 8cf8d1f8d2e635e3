"""Load or recompute: which of the two makes state ready sooner.

Residency, the prefetcher and the prefix lookup ask. The rates are measured while the engine runs.
Until the first prefill was measured, everything is loaded.
"""

from __future__ import annotations

from math import isfinite

from scalesim.memory.links.link import Direction, Link, seconds_at
from scalesim.memory.timing import Timing


class LoadOrRecompute:
    """Compares the time of a load with the time of a prefill.

    Unless it ``weighs``, whatever can be loaded is loaded. A block is ``page_bytes`` on the link,
    and ``block_size`` tokens in a prefill, which differ by model.
    """

    def __init__(self, link: Link, timing: Timing, page_bytes: int, *, weighs: bool) -> None:
        self.weighs = weighs
        self._link, self._timing, self._page_bytes = link, timing, page_bytes

    def rebuild_s(self, blocks: int, block_size: int) -> float:
        """Seconds that a prefill of ``blocks`` blocks takes once it has begun; infinite until one
        was measured."""
        return self._timing.prefill_s(blocks * block_size)

    def backlog_s(self, num_tokens: int) -> float:
        """Seconds that a prefill of ``num_tokens`` tokens takes; 0 until one was measured."""
        seconds = self._timing.prefill_s(num_tokens)
        return seconds if isfinite(seconds) else 0.0

    def load_s(self, blocks: int) -> float:
        """Seconds that ``blocks`` blocks take on the link to the device."""
        return seconds_at(self._link.rate("in"), blocks * self._page_bytes)

    def num_worth_loading(self, blocks: int, block_size: int, needed_s: float = 0.0) -> int:
        """How many of ``blocks`` blocks, from the first on, to load for a request that starts in
        ``needed_s`` seconds.

        All, if the last block arrives in time; or if it is late by less than the prefill of the
        late blocks takes, or by less than one iteration of the loop. Otherwise only the blocks that
        arrive in time.
        """
        if not self.weighs:
            return blocks
        block_s = self._page_bytes / self._link.rate("in")
        left_s = needed_s - self._link.queued_bytes("in") / self._link.rate("in")
        late_s = blocks * block_s - left_s
        if not late_s > 0.0:
            return blocks
        in_time = max(0, int(left_s / block_s))
        worth_s = max(self._timing.usual_s, self.rebuild_s(blocks - in_time, block_size))
        return blocks if late_s <= worth_s else in_time

    def is_worth_saving(self, blocks: int, block_size: int) -> bool:
        """Whether to save ``blocks`` blocks while a request waits for their pages, rather than drop
        them and compute them again later."""
        num_bytes = self._link.queued_bytes("out") + blocks * self._page_bytes
        return self.is_sooner(num_bytes / self._link.rate("out"), blocks, block_size)

    def is_worth_recalling(
        self, blocks: int, new_blocks: int, block_size: int, needed_s: float = 0.0
    ) -> bool:
        """Whether to bring ``blocks`` blocks to the device through the host, ``new_blocks`` of
        which are yet to be read from the disk, rather than compute them again in ``needed_s``
        seconds: if they are there before a prefill of them would be over, or within an iteration of
        the loop."""
        read_s = self._seconds("up", new_blocks) + blocks * self._page_bytes / self._link.rate("in")
        return self.is_sooner(read_s - needed_s, blocks, block_size)

    def is_worth_waiting(self, blocks: int, block_size: int) -> bool:
        """Whether to wait for the spills under way, and then for a save, rather than drop
        ``blocks`` blocks and compute them again later."""
        return self.is_sooner(self._seconds("down", 0), blocks, block_size)

    def is_sooner(self, seconds: float, blocks: int, block_size: int) -> bool:
        """Whether to wait ``seconds`` for ``blocks`` blocks rather than compute them again: no
        longer than a prefill of them takes, or an iteration of the loop."""
        return not self.weighs or seconds <= max(
            self._timing.usual_s, self.rebuild_s(blocks, block_size)
        )

    def _seconds(self, direction: Direction, blocks: int) -> float:
        """Seconds until ``blocks`` blocks more have been copied; infinite where that is not
        possible any more."""
        num_bytes = self._link.queued_bytes(direction) + blocks * self._page_bytes
        return seconds_at(self._link.rate(direction), num_bytes)
