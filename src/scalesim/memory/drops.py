"""Drops: pages are given back to their pools, and content that is on no tier is forgotten.

A device page may be freed while steps that were already launched still use it. The pool keeps the
number of the last such step as the page's fence, and a load into the page waits for the fence.
"""

from __future__ import annotations

from typing import Protocol

from scalesim.memory.counters import Counters
from scalesim.memory.eviction.ranking import EvictionRanking
from scalesim.memory.tiers import Tier, Tiers
from scalesim.memory.timing import Timing
from scalesim.memory.tree.prefix_tree import PrefixTree
from scalesim.memory.tree.run import Transfer
from scalesim.memory.tree.segment import Segment
from scalesim.memory.tree.walk import descendants


class ResidencyListener(Protocol):
    """Is told when pages leave a tier, so that they can be loaded again in time. ``Owners`` is the
    one listener: a protocol keeps residency from knowing agents and the prefetch queue."""

    def evicted(self, segment: Segment) -> None:
        """Pages of ``segment`` left the device."""
        ...

    def host_changed(self, segment: Segment) -> None:
        """Pages of ``segment`` came to the host, or left it; or an attachment left a tier."""
        ...


class Drops:
    """Frees the pages of segments, and keeps tree and ranking in step."""

    def __init__(
        self,
        tree: PrefixTree,
        ranking: EvictionRanking,
        listener: ResidencyListener,
        tiers: Tiers,
        counters: Counters,
        timing: Timing,
    ) -> None:
        self._tree, self._ranking, self._listener = tree, ranking, listener
        self._tiers, self._counters, self._timing = tiers, counters, timing

    # -- content forgotten on all tiers ----------------------------------------------------------

    def drop(self, segment: Segment, keep: int = 0) -> None:
        """Forget the content of ``segment`` from block ``keep`` on, and of all segments below it,
        on all tiers. KV can be computed again from its tokens. No segment of the subtree may be
        pinned or moving."""
        self.drop_below(segment)
        self._drop_one(segment, keep, merge=True)

    def drop_if_idle(self, segment: Segment) -> bool:
        """Drop ``segment`` unless a segment of its subtree is pinned or moving. Returns whether it
        was dropped."""
        if self.is_busy(segment):
            return False
        self.drop(segment)
        return True

    def clear(self) -> None:
        """Drop all segments that no lease pins and no copy uses, but those whose loss is
        fatal."""
        for segment in list(self._tree):
            if segment.parent is not None and segment.loss != "fatal":
                self.drop_if_idle(segment)

    def drop_if_removed(self, segment: Segment) -> None:
        """Drop an attachment that was removed, unless it is pinned or moving."""
        if segment.is_removed and segment.parent is not None and not self.is_busy(segment):
            self.drop(segment)

    def drop_failed_load(self, transfer: Transfer) -> None:
        """Drop the blocks that a failed ``transfer`` was to load, and all that is behind them:
        their copies on lower tiers cannot be trusted, so they are computed again, or read from
        their source; what has neither keeps the only copy that there is. To be called when no lease
        pins them any more."""
        for segment, _ in transfer.parts:
            is_lost = segment.loss != "fatal" and segment.parent is not None
            if is_lost and not self.is_busy(segment):
                self.drop(segment, segment.device.valid)

    def drop_unreadable(self, segment: Segment) -> None:
        """Drop the blocks that could not be read from the disk, and all that is behind them;
        unless a segment of the subtree is pinned or moving: then they are read once more in
        vain."""
        keep = max(segment.device.valid, segment.host.valid)
        if segment.parent is not None and keep < segment.disk.valid and not self.is_busy(segment):
            self.drop(segment, keep)

    def is_busy(self, segment: Segment) -> bool:
        """Whether a segment of the subtree of ``segment`` is pinned or moving."""
        return any(node.pins or node.is_moving for node in (segment, *descendants(segment)))

    def drop_below(self, segment: Segment) -> None:
        """Drop all segments below ``segment``."""
        for child in reversed(list(descendants(segment))):
            self._drop_one(child, 0, merge=False)  # merging here could take ``segment`` away

    def _drop_one(self, segment: Segment, keep: int, *, merge: bool) -> None:
        assert segment.pins == 0 and not segment.is_moving, segment
        self._counters.dropped_pages += max(0, segment.num_available - keep)
        for tier in self._tiers:
            if len(tier.run(segment)) > keep:
                self.free(tier, self.cut(tier, segment, keep))
        self.trim(segment, merge=merge)

    # -- pages of one tier -----------------------------------------------------------------------

    def shed(self, tier: Tier, segment: Segment, keep: int = 0) -> None:
        """Free the pages of ``segment`` on a ``tier`` below the device from block ``keep`` on.
        Blocks that are on no other tier are forgotten; then no segment below may have content."""
        before = segment.num_available
        self.free(tier, self.cut(tier, segment, keep))
        if (lost := before - segment.num_available) > 0:
            self._counters.dropped_pages += lost
            self.drop_below(segment)
            self.trim(segment, merge=False)  # merging here could take away what room is made for
        else:
            self._ranking.refresh(segment)
        if segment.parent is not None:
            self._listener.host_changed(segment)

    def free(self, tier: Tier, pages: list[int]) -> None:
        """Give ``pages`` back to the pool of ``tier``. Steps that were launched may still use
        device pages, so their fence is the newest step."""
        tier.pool.free(pages, self._timing.last_launched if tier is self._tiers.device else -1)

    def cut(self, tier: Tier, segment: Segment, keep: int) -> list[int]:
        """Remove the pages of ``segment`` on ``tier`` from block ``keep`` on, and return them; the
        caller frees them."""
        prefetched = segment.prefetched
        pages = tier.cut(segment, keep)
        if tier is self._tiers.device:
            self._counters.prefetch_wasted += prefetched - segment.prefetched
            self._counters.evicted_pages += len(pages)
        return pages

    # -- the tree, after pages were removed ------------------------------------------------------

    def trim(self, segment: Segment, *, merge: bool = True) -> None:
        """Adapt the tree after pages of ``segment`` were removed: shorten the segment to the blocks
        that still have content, or remove it if none has; then rank it and its parent again."""
        parent = segment.parent
        assert parent is not None
        available = segment.num_available
        if segment.source is not None:  # an attachment stays in the tree without pages
            self._ranking.refresh(segment)
            self._listener.host_changed(segment)
            return
        if available == 0 and segment.pins == 0:
            self._ranking.forget(segment)
            self._tree.remove(segment)
            if not (merge and self.try_merge(parent)) and not parent.is_root:
                self._ranking.refresh(parent)
            return
        if available < segment.num_blocks and segment.pins == 0:
            segment.shorten(available)
        self._ranking.refresh(segment)
        if not parent.is_root:
            self._ranking.refresh(parent)

    def try_merge(self, segment: Segment) -> bool:
        """Merge ``segment`` with its only child if both can be one segment. Returns whether they
        were merged."""
        joined = self._tree.merge(segment)
        if joined is None:
            return False
        self._ranking.forget(segment)
        self._ranking.refresh(joined)
        return True
