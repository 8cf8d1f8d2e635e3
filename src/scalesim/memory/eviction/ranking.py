"""The eviction ranking: the order in which segments leave the device, are saved, leave the host,
are spilled to the disk, and leave the disk.

Each of these moves has an order, and a segment is in the order exactly while its state allows the
move. ``refresh`` is called after each change of a segment and only notes the change; the orders are
updated before they are read.

Updating late is kept for the order of equal next uses, not for speed. Ranking at once costs a call
as much (``benchmarks overhead``: 0 to 2 % more). But the segments of one agent have one next use,
and ranked at once they are saved in another order: one of six workloads then loaded 27 % more
pages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from scalesim.memory.eviction.lazy_heap import LazyHeap
from scalesim.memory.eviction.policies import Policy
from scalesim.memory.timing import Timing
from scalesim.memory.tree.next_use import NextUse
from scalesim.memory.tree.owner import MANY_OWNERS, AgentState
from scalesim.memory.tree.prefix_tree import PrefixTree
from scalesim.memory.tree.segment import Segment
from scalesim.memory.tree.walk import lineage

MAX_SAVE_FAILURES = 3
MAX_CHANGED = 256  # noted changes at most: a pool that never runs short must not collect them
_BEFORE_ALL = 1 << 60  # more than there are sequence numbers


class EvictionRanking:
    """Orders of segments by next use, one for each move; the segment that is used last leaves
    first.

    The orders of the host and of the disk are kept only from the first time on that the host pool
    runs short. ``num_clean`` counts the host pages that can be freed without loss: their content is
    on the disk. ``num_unpinned``: how often a segment lost its last pin.
    """

    def __init__(self, tree: PrefixTree, policy: Policy, timing: Timing) -> None:
        self._tree, self.policy, self.timing = tree, policy, timing
        self._evictable: LazyHeap[Segment] = LazyHeap()
        self._cleanable: LazyHeap[Segment] = LazyHeap()
        self._host_only: LazyHeap[Segment] = LazyHeap()
        self._on_both: LazyHeap[Segment] = LazyHeap(soonest=True)  # on device and host
        self._clean: LazyHeap[Segment] = LazyHeap()  # on host and disk
        self._to_spill: LazyHeap[Segment] = LazyHeap()
        self._on_disk: LazyHeap[Segment] = LazyHeap()
        self._crowds: dict[Segment, LazyHeap[AgentState]] = {}  # owners with a next use
        self._clean_pages: dict[Segment, int] = {}
        self.num_clean = self.num_unpinned = 0
        self._host_is_short = self._spills = False
        self._changed: dict[Segment, None] = {}  # since the last update
        self._seq = 0

    def segments(self) -> list[Segment]:
        """All segments, children before parents. O(segments)."""
        return list(self._tree)[::-1]

    def next_seq(self) -> int:
        """The next sequence number of the engine's events; sequence numbers break ties."""
        self._seq += 1
        return self._seq

    def touch(self, segment: Segment) -> None:
        """Record that ``segment`` is used now."""
        segment.touch(self.timing.now, self.next_seq())

    # -- the next use of a segment ---------------------------------------------------------------

    def next_use(self, segment: Segment) -> NextUse:
        """The next use of ``segment``: the key of every order. Override this method for another
        order."""
        if self.policy.order == "last_use":
            return NextUse(None, 0, segment.last_use, segment.last_seq)
        if self.unlikely_to_return(segment):
            return NextUse(float("inf"), -segment.last_seq, segment.last_use, segment.last_seq)
        time, seq = self.owners_next_use(segment)
        return NextUse(time, seq, segment.last_use, segment.last_seq)

    def serve_next(self, agent: AgentState) -> None:
        """``agent`` is served before many others that wait: its sequence number becomes negative,
        so that its state is ranked before theirs."""
        agent.served_next(self.next_seq() - _BEFORE_ALL)
        for end in agent.paths:
            for segment in lineage(end):
                self.refresh(segment)
        for segment in agent.attached:
            if segment.runs:
                self.owner_changed(segment, agent)

    def may_displace(self, ahead_of: NextUse, next_use: NextUse) -> bool:
        """Whether state that is moved ahead of one use may displace what has another one: only if
        that is needed at a later move of the clock, or if it is not known; or if many wait, and the
        one is served among the next and the other is not.

        Else of two that are needed at the same move neither displaces the other, whoever is said to
        come first: the displaced one would be loaded again, while what is resident can be served
        first.
        """
        now = self.timing.now
        if next_use.time is None:
            return ahead_of.sooner_than(next_use, now)
        if next_use.distance(now) - ahead_of.distance(now) > 0.5 * self.timing.move:
            return True
        return ahead_of.seq < 0 <= next_use.seq

    def owners_next_use(self, segment: Segment) -> tuple[float | None, int]:
        """The soonest next use of the owners of ``segment``, and the sequence number of the event
        that told it."""
        next_use: float | None = None
        next_seq = 0
        sole = segment.owners.sole
        if sole is not None:  # nearly always
            return sole.next_use, 0 if sole.next_use is None else sole.next_seq
        if segment.runs:
            soonest = self.soonest_owner(segment)
            return (None, 0) if soonest is None else (soonest.next_use, soonest.next_seq)
        if len(segment.owners) <= MANY_OWNERS:
            for owner in segment.owners:
                time = owner.next_use
                if time is not None and (
                    next_use is None or (time, owner.next_seq) < (next_use, next_seq)
                ):
                    next_use, next_seq = time, owner.next_seq
        return next_use, next_seq

    def soonest_owner(self, segment: Segment) -> AgentState | None:
        """The owner of weights that calls first, as far as that is known."""
        crowd = self._crowds.get(segment)
        return None if crowd is None else crowd.peek(self.timing.now)

    def owner_changed(self, segment: Segment, owner: AgentState) -> None:
        """``owner`` of weights came or left, or has another next use. A model has any number of
        agents, so that they are kept in order."""
        crowd = self._crowds.setdefault(segment, LazyHeap(soonest=True))
        if owner in segment.owners and owner.next_use is not None:
            crowd.add(owner, NextUse(owner.next_use, owner.next_seq, 0.0, 0))
        else:
            crowd.discard(owner)
        self.refresh(segment)

    def unlikely_to_return(self, segment: Segment) -> bool:
        """Whether no owner is likely to call with this prefix again. Such a segment is evicted
        first, and loaded only on demand. A partial block is judged by its parent."""
        node = segment.parent if segment.is_partial else segment
        assert node is not None
        sole = node.owners.sole
        if sole is not None:  # nearly always
            return sole.unlikely_to_return(node)
        if node.num_hits and not 0 < len(node.owners) <= MANY_OWNERS:
            return False
        return all(owner.unlikely_to_return(node) for owner in node.owners)

    def is_leftover(self, segment: Segment) -> bool:
        """Whether ``segment`` was never hit, and its owners rarely reuse new paths. Such a segment
        is evicted without being saved."""
        if segment.num_hits:
            return False
        for owner in segment.owners:  # noqa: SIM110  any() is slower, and this is the planner's inner loop
            if not owner.rarely_reuses_paths:
                return False
        return True

    def may_save(self, segment: Segment) -> bool:
        """Whether ``segment`` may be saved to the host."""
        return (
            self.policy.host
            and not segment.is_partial
            and segment.failed_saves < MAX_SAVE_FAILURES
            and not self.is_leftover(segment)
        )

    def may_spill(self, segment: Segment) -> bool:
        """Whether ``segment`` may be copied from the host to the disk: it is likely to be used
        again, and cannot be read from a source."""
        return not segment.is_attachment and not self.unlikely_to_return(segment)

    # -- pins ------------------------------------------------------------------------------------

    def pin(self, segment: Segment) -> None:
        """Pin ``segment`` for a lease: its device pages stay where they are."""
        if segment.pin():
            self.refresh(segment)

    def unpin(self, segment: Segment) -> None:
        """Unpin ``segment`` for a lease."""
        if segment.unpin():
            self.num_unpinned += 1
            self.refresh(segment)

    # -- the next victim -------------------------------------------------------------------------

    def farthest_on_device(self) -> Segment | None:
        """The segment to evict from the device first."""
        self._update_orders()
        return self._evictable.peek(self.timing.now)

    def farthest_dirty(self) -> Segment | None:
        """The segment to save first: the first to be evicted of those with blocks that are on the
        device only."""
        self._update_orders()
        return self._cleanable.peek(self.timing.now)

    def farthest_on_host(self) -> Segment | None:
        """The segment to drop from the host first, of those whose content is on the host only, in
        part at least."""
        self._update_orders()
        self._start_host_orders()
        return self._host_only.peek(self.timing.now)

    def farthest_clean(self) -> Segment | None:
        """The segment to drop from the host first, of those whose content is on the disk too."""
        self._update_orders()
        self._start_host_orders()
        return self._clean.peek(self.timing.now)

    def farthest_to_spill(self) -> Segment | None:
        """The segment to copy to the disk first. Where there is no disk, nobody asks, and this
        order is not kept."""
        self._update_orders()
        if not self._spills:
            self._spills, self._host_is_short = True, False  # the orders start once more, with it
        self._start_host_orders()
        return self._to_spill.peek(self.timing.now)

    def pass_over(self, segment: Segment) -> None:
        """Do not spill ``segment`` until it changes."""
        self._to_spill.discard(segment)

    def farthest_on_disk(self, other_than: Segment) -> Segment | None:
        """The segment to drop from the disk first. Never ``other_than``."""
        self._update_orders()
        self._start_host_orders()
        self._on_disk.discard(other_than)
        return self._on_disk.peek(self.timing.now)

    def soonest_on_both(self, other_than: Segment | None) -> Segment | None:
        """The segment whose host copy to drop first: it is on the device too, and will be evicted
        last. Never ``other_than``."""
        self._update_orders()
        self._start_host_orders()
        if other_than is not None:
            self._on_both.discard(other_than)
        return self._on_both.peek(self.timing.now)

    def is_evictable(self, segment: Segment) -> bool:
        """Whether ``segment`` is in the order of eviction from the device."""
        self._update_orders()
        return segment in self._evictable

    # -- keeping the orders ----------------------------------------------------------------------

    def refresh(self, segment: Segment) -> None:
        """Note that ``segment`` changed: its places in the orders are updated before the orders are
        read."""
        self._changed[segment] = None
        if len(self._changed) > MAX_CHANGED:
            self._update_orders()

    def _update_orders(self) -> None:
        """Update the places of all segments that changed."""
        changed, self._changed = self._changed, {}
        for segment in changed:
            self._place(segment)

    def _place(self, segment: Segment) -> None:
        """Put ``segment`` into the orders that its state belongs to, and remove it from the
        others."""
        device = segment.device
        if segment.pins or device.transfer is not None or segment.host.transfer is not None:
            self._evictable.discard(segment)  # pinned, or moving
            self._cleanable.discard(segment)
            if self._host_is_short:
                self._place_on_host(segment, self.next_use(segment))
            return
        may_leave = device and not segment.device_children
        may_clean = segment.num_dirty > 0 and self.may_save(segment)
        if not (may_leave or may_clean or self._host_is_short):
            self._evictable.discard(segment)
            self._cleanable.discard(segment)
            return
        next_use = self.next_use(segment)
        if may_leave:
            self._evictable.add(segment, next_use)
        else:
            self._evictable.discard(segment)
        if may_clean:
            self._cleanable.add(segment, next_use)
        else:
            self._cleanable.discard(segment)
        if may_leave or may_clean:
            self._mark_owners(segment)
        if self._host_is_short:
            self._place_on_host(segment, next_use)

    def forget(self, segment: Segment) -> None:
        """Remove ``segment``, which left the tree, from all orders."""
        self._changed.pop(segment, None)
        self._crowds.pop(segment, None)
        for order in (
            self._evictable,
            self._cleanable,
            self._host_only,
            self._on_both,
            self._to_spill,
            self._on_disk,
        ):
            order.discard(segment)
        self._set_clean(segment, False)

    def _mark_owners(self, segment: Segment) -> None:
        """Note with the owners of ``segment`` that its place depends on their next uses."""
        if len(segment.owners) <= MANY_OWNERS:
            for owner in segment.owners:
                owner.may_be_ranked = True

    def _place_on_host(self, segment: Segment, next_use: NextUse) -> None:
        """Put ``segment`` into the orders of host and disk that its state belongs to."""
        still = not segment.is_moving
        is_kept = segment.loss == "fatal"  # the host is where it lives
        if still and not is_kept and segment.host and segment.device.valid >= segment.host.valid:
            self._on_both.add(segment, next_use)
        else:
            self._on_both.discard(segment)
        idle = still and not segment.pins
        is_clean = segment.num_unspilled == 0
        alone = idle and not is_clean and not segment.device and not segment.content_children
        if alone and not is_kept:
            self._host_only.add(segment, next_use)
        else:
            self._host_only.discard(segment)
        self._set_clean(segment, bool(idle and segment.host and is_clean), next_use)
        if self._spills and idle and not is_clean and self.may_spill(segment):
            self._to_spill.add(segment, next_use)
        else:
            self._to_spill.discard(segment)
        self._place_on_disk(segment, idle, next_use)
        if still:
            self._mark_owners(segment)

    def _set_clean(self, segment: Segment, is_clean: bool, next_use: NextUse | None = None) -> None:
        self.num_clean -= self._clean_pages.pop(segment, 0)
        if not is_clean:
            self._clean.discard(segment)
            return
        assert next_use is not None
        self._clean.add(segment, next_use)
        self._clean_pages[segment] = len(segment.host)
        self.num_clean += len(segment.host)

    def _place_on_disk(self, segment: Segment, idle: bool, next_use: NextUse) -> None:
        """Put ``segment`` into the order of the disk if its pages there can be freed: another tier
        has the content, or nothing below it has any."""
        is_double = max(segment.device.valid, segment.host.valid) >= segment.disk.valid
        if idle and segment.disk and (is_double or not segment.content_children):
            self._on_disk.add(segment, next_use)
        else:
            self._on_disk.discard(segment)

    def _start_host_orders(self) -> None:
        """Start to keep the orders of the host, if that has not begun."""
        if not self._host_is_short:
            self._host_is_short = True
            for segment in self._tree:
                self._place_on_host(segment, self.next_use(segment))


MakeRanking: TypeAlias = Callable[[PrefixTree, Policy, Timing], EvictionRanking]
