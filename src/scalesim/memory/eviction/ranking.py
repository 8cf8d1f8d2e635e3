"""The eviction ranking: the order in which segments leave the device, are saved, leave the host.

There is an order for each of the moves, and a segment is in the order exactly while its state
allows the move. ``refresh`` is called after each change of a segment and only notes the change; the
orders are brought up to date before they are read.

Updating late is kept for the order of equals, not for speed. Ranking at once costs a call as
much (``benchmarks overhead``: 0 to 2 % more), but the segments of one agent have one next use, and
ranked at once they are saved in another order: one of six workloads then loaded 27 % more pages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from scalesim.memory.eviction.lazy_heap import LazyHeap
from scalesim.memory.eviction.policies import Policy
from scalesim.memory.timing import Timing
from scalesim.memory.tree.owner import MANY_OWNERS
from scalesim.memory.tree.prefix_tree import PrefixTree
from scalesim.memory.tree.segment import Segment
from scalesim.memory.tree.use import UseTime

MAX_SAVE_FAILURES = 3
MAX_CHANGED = 256  # changes noted at most, for pools that seldom run short


class EvictionRanking:
    """Four orders of segments by next use: the farthest use leaves first.

    The two orders of the host are kept only from the first time that the host pool runs short."""

    def __init__(self, tree: PrefixTree, policy: Policy, timing: Timing) -> None:
        self._tree, self.policy, self.timing = tree, policy, timing
        self._evictable: LazyHeap[Segment] = LazyHeap()
        self._cleanable: LazyHeap[Segment] = LazyHeap()
        self._host_only: LazyHeap[Segment] = LazyHeap()
        self._doubled: LazyHeap[Segment] = LazyHeap(soonest=True)  # on both tiers
        self._host_is_short = False
        self._changed: dict[Segment, None] = {}  # since the orders were read last
        self._seq = 0

    def next_seq(self) -> int:
        """The engine's sequence numbers: they break ties, in the order of events."""
        self._seq += 1
        return self._seq

    def touch(self, segment: Segment) -> None:
        """``segment`` was used now."""
        segment.touch(self.timing.now, self.next_seq())

    # -- when a segment is used next -------------------------------------------------------------

    def use_of(self, segment: Segment) -> UseTime:
        """When ``segment`` is used next: what every order goes by."""
        if self.policy.order == "last_use":
            return UseTime(None, 0, segment.last_use, segment.last_seq)
        if self.unlikely_to_return(segment):
            return UseTime(float("inf"), -segment.last_seq, segment.last_use, segment.last_seq)
        next_use, next_seq = self.next_use_of(segment)
        return UseTime(next_use, next_seq, segment.last_use, segment.last_seq)

    def next_use_of(self, segment: Segment) -> tuple[float | None, int]:
        """The next use of the owner that comes first, and the number of the event that told it."""
        next_use: float | None = None
        next_seq = 0
        sole = segment.owners.sole
        if sole is not None:  # nearly always
            return sole.next_use, 0 if sole.next_use is None else sole.next_seq
        if len(segment.owners) <= MANY_OWNERS:
            for owner in segment.owners:
                time = owner.next_use
                if time is not None and (
                    next_use is None or (time, owner.next_seq) < (next_use, next_seq)
                ):
                    next_use, next_seq = time, owner.next_seq
        return next_use, next_seq

    def unlikely_to_return(self, segment: Segment) -> bool:
        """Whether no owner is likely to call with this prefix again. Such a segment leaves first,
        and is loaded only on demand. A partial block counts as its parent does."""
        node = segment.parent if segment.is_tail else segment
        assert node is not None
        sole = node.owners.sole
        if sole is not None:  # nearly always
            return sole.unlikely_to_return(node)
        if node.uses and not 0 < len(node.owners) <= MANY_OWNERS:
            return False
        return all(owner.unlikely_to_return(node) for owner in node.owners)

    def is_leftover(self, segment: Segment) -> bool:
        """Whether ``segment`` was never used twice, and new paths of its owners rarely are. Such a
        segment is evicted without being saved."""
        if segment.uses:
            return False
        for owner in segment.owners:  # noqa: SIM110  the planner spends its time here
            if not owner.leaves_tails:
                return False
        return True

    def may_save(self, segment: Segment) -> bool:
        return (
            self.policy.host
            and not segment.is_tail
            and segment.failed_saves < MAX_SAVE_FAILURES
            and not self.is_leftover(segment)
        )

    # -- pins ------------------------------------------------------------------------------------

    def pin(self, segment: Segment) -> None:
        """A lease pins ``segment``: its device pages stay where they are."""
        if segment.pin():
            self.refresh(segment)

    def unpin(self, segment: Segment) -> None:
        """A lease lets go of ``segment``."""
        if segment.unpin():
            self.refresh(segment)

    # -- the next victim -------------------------------------------------------------------------

    def farthest_on_device(self) -> Segment | None:
        """The segment that leaves the device first."""
        self._catch_up()
        return self._evictable.peek(self.timing.now)

    def farthest_dirty(self) -> Segment | None:
        """The segment that is saved first: of those without a host copy, the first to leave."""
        self._catch_up()
        return self._cleanable.peek(self.timing.now)

    def farthest_on_host(self) -> Segment | None:
        """The segment that leaves the host first, of those on the host only."""
        self._catch_up()
        self._watch_host()
        return self._host_only.peek(self.timing.now)

    def soonest_doubled(self, but: Segment) -> Segment | None:
        """The segment whose host copy is needed last: it is also on the device, and leaves last."""
        self._catch_up()
        self._watch_host()
        self._doubled.discard(but)
        return self._doubled.peek(self.timing.now)

    def is_evictable(self, segment: Segment) -> bool:
        self._catch_up()
        return segment in self._evictable

    # -- keeping the orders ----------------------------------------------------------------------

    def refresh(self, segment: Segment) -> None:
        """``segment`` has changed: its place in the orders is to be computed again."""
        self._changed[segment] = None
        if len(self._changed) > MAX_CHANGED:
            self._catch_up()

    def _catch_up(self) -> None:
        changed, self._changed = self._changed, {}
        for segment in changed:
            self._place(segment)

    def _place(self, segment: Segment) -> None:
        """Put ``segment`` into the orders that its state belongs to."""
        device, host = segment.device, segment.host
        if segment.pins or device.transfer is not None or host.transfer is not None:
            self._evictable.discard(segment)  # it is held, or moving
            self._cleanable.discard(segment)
            if self._host_is_short:
                self._place_on_host(segment, self.use_of(segment))
            return
        may_leave = device and not segment.device_children
        may_clean = device.valid > host.valid and self.may_save(segment)
        if not (may_leave or may_clean or self._host_is_short):
            self._evictable.discard(segment)
            self._cleanable.discard(segment)
            return
        use = self.use_of(segment)
        if may_leave:
            self._evictable.add(segment, use)
        else:
            self._evictable.discard(segment)
        if may_clean:
            self._cleanable.add(segment, use)
        else:
            self._cleanable.discard(segment)
        if may_leave or may_clean:
            self._mark(segment)
        if self._host_is_short:
            self._place_on_host(segment, use)

    def forget(self, segment: Segment) -> None:
        """``segment`` left the tree."""
        self._changed.pop(segment, None)
        for order in (self._evictable, self._cleanable, self._host_only, self._doubled):
            order.discard(segment)

    def _mark(self, segment: Segment) -> None:
        """``segment`` is in an order: its place hangs on its owners' next uses."""
        if len(segment.owners) <= MANY_OWNERS:
            for owner in segment.owners:
                owner.may_be_ranked = True

    def _place_on_host(self, segment: Segment, use: UseTime) -> None:
        still = not segment.is_moving
        if still and segment.host and segment.device.valid >= segment.host.valid:
            self._doubled.add(segment, use)
        else:
            self._doubled.discard(segment)
        alone = still and not segment.pins and not segment.device and not segment.content_children
        if alone and segment.host:
            self._host_only.add(segment, use)
        else:
            self._host_only.discard(segment)
        if still:
            self._mark(segment)

    def _watch_host(self) -> None:
        if not self._host_is_short:
            self._host_is_short = True
            for segment in self._tree:
                self._place_on_host(segment, self.use_of(segment))


MakeRanking: TypeAlias = Callable[[PrefixTree, Policy, Timing], EvictionRanking]
