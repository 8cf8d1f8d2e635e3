"""Room on the host and on the disk: what leaves them for what comes.

What is not likely to be used again leaves the host first: it is never written to the disk, and
would fill the host. A host copy leaves without loss where another tier has the content as well, and
such copies leave next. All else leaves only for what is used sooner. Of two segments with equal
next uses neither displaces the other, as they would displace each other for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from scalesim.memory.drops import Drops
from scalesim.memory.eviction.ranking import EvictionRanking
from scalesim.memory.tiers import Tiers
from scalesim.memory.timing import Timing
from scalesim.memory.tree.next_use import NextUse
from scalesim.memory.tree.segment import Segment


class Room:
    """Makes pages free on the tiers below the device. No method moves a page."""

    def __init__(
        self, ranking: EvictionRanking, drops: Drops, tiers: Tiers, timing: Timing
    ) -> None:
        self._ranking, self._drops, self._timing = ranking, drops, timing
        self._host, self._disk = tiers.host, tiers.disk

    def to_save(self, count: int, saved: Segment, *, may_lose: bool = True) -> bool:
        """Make ``count`` host pages free for ``saved``. Returns False if that cannot be.

        In this order leave: what is not likely to be used again; host copies of segments that are
        on the device too and are used sooner, the soonest first; host copies of what is on the
        disk, the farthest first and whatever its next use if ``saved`` has blocks on the device
        alone, which would be lost otherwise; and, with ``may_lose``, what is on the host alone and
        is used later.
        """
        next_use = self._ranking.next_use(saved)
        is_later = self._later_than(next_use)
        is_clean_enough = is_later if saved.num_dirty == 0 else lambda segment: True
        return self._on_host(
            count,
            lambda missing: (
                self._shed_unlikely()
                or self._shed_on_both(next_use, saved)
                or self._shed_clean(is_clean_enough)
                or (may_lose and self._shed_last_copy(is_later, missing))
            ),
        )

    def to_stage(self, count: int, next_use: NextUse) -> bool:
        """Make ``count`` host pages free for state from the disk that has ``next_use``. Returns
        False if that cannot be. Only what is used at a later move leaves: also a copy of what is on
        the device stays if it is needed sooner, as the device may evict that before it is used
        again, and it would have to be read once more. What is to be spilled stays until it is on
        the disk."""
        ranking = self._ranking

        def is_later(segment: Segment) -> bool:
            return ranking.may_displace(next_use, ranking.next_use(segment))

        return self._on_host(
            count,
            lambda missing: (
                self._shed_unlikely()
                or self._shed_clean(is_later)
                or (ranking.farthest_to_spill() is None and self._shed_last_copy(is_later, missing))
            ),
        )

    def to_recall(self, count: int) -> bool:
        """Make ``count`` host pages free for state from the disk that a request waits for: whatever
        is not needed now may leave. Returns False if that cannot be."""
        now = self._timing.now
        next_use = NextUse(None, 0, now, self._ranking.next_seq())
        if self._ranking.policy.order == "next_use":
            next_use = NextUse(now, 0, now, 0)
        is_later = self._later_than(next_use)
        return self._on_host(
            count,
            lambda missing: (
                self._shed_unlikely()
                or self._shed_on_both(next_use)
                or self._shed_clean(is_later)
                or self._shed_last_copy(is_later, missing)
            ),
        )

    def to_keep(self, count: int) -> bool:
        """Make ``count`` host pages free for state whose loss is fatal: all other state may leave.
        Returns False if too much is moving, or kept as well."""

        def may_leave(segment: Segment) -> bool:
            return True

        return self._on_host(
            count,
            lambda missing: (
                self._shed_on_both(None)
                or self._shed_clean(may_leave)
                or self._shed_last_copy(may_leave, missing)
                or self._shed_any()
            ),
        )

    def to_spill(self, count: int, spilled: Segment) -> bool:
        """Make ``count`` disk pages free for ``spilled``: what is used later leaves, the farthest
        first. Returns False if that is not enough."""
        ranking, pool = self._ranking, self._disk.pool
        if count > pool.num_usable:
            return False
        is_later = self._later_than(ranking.next_use(spilled))
        while (missing := count - pool.num_free) > 0:
            farthest = ranking.farthest_on_disk(spilled)
            if farthest is None or not is_later(farthest):
                return False
            self._drops.shed(self._disk, farthest, max(0, farthest.disk.valid - missing))
        return True

    def _on_host(self, count: int, shed: Callable[[int], bool]) -> bool:
        """Call ``shed(pages that are missing)`` until ``count`` host pages are free."""
        pool = self._host.pool
        if count > pool.num_usable:
            return False
        while (missing := count - pool.num_free) > 0:
            if not shed(missing):
                return False
        return True

    def _shed_on_both(self, next_use: NextUse | None, other_than: Segment | None = None) -> bool:
        segment = self._ranking.soonest_on_both(other_than)
        if segment is None:
            return False
        theirs = self._ranking.next_use(segment)
        if next_use is not None and not theirs.sooner_than(next_use, self._timing.now):
            return False
        self._drops.free(self._host, self._host.cut(segment, 0))
        self._ranking.refresh(segment)
        return True

    def _shed_unlikely(self) -> bool:
        segment = self._ranking.farthest_on_host()
        if segment is None or self._ranking.next_use(segment).time != inf:
            return False
        self._drops.shed(self._host, segment)
        return True

    def _shed_clean(self, may_leave: Callable[[Segment], bool]) -> bool:
        segment = self._ranking.farthest_clean()
        if segment is None or not may_leave(segment):
            return False
        self._drops.shed(self._host, segment)
        return True

    def _shed_last_copy(self, may_leave: Callable[[Segment], bool], wanted: int) -> bool:
        segment = self._ranking.farthest_on_host()
        if segment is None or not may_leave(segment):
            return False
        keep = 0 if segment.is_attachment else max(0, segment.host.valid - wanted)
        self._drops.shed(self._host, segment, keep)
        return True

    def _shed_any(self) -> bool:
        """Shed from the host what no order has: where only the front of a segment is on the device,
        or where what is below it on the disk is lost with it. The deepest goes first."""
        for segment in self._ranking.segments():
            if segment.host and segment.loss != "fatal" and not self._drops.is_busy(segment):
                self._drops.shed(self._host, segment)
                return True
        return False

    def _later_than(self, next_use: NextUse) -> Callable[[Segment], bool]:
        ranking, now = self._ranking, self._timing.now
        return lambda segment: next_use.sooner_than(ranking.next_use(segment), now)
