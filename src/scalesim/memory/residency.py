"""Residency: which segments are on which tier. Eviction, loads, saves and the start window.

Decides by ``Use`` alone (who is needed next) and acts through the pools and the link. Called by the
manager, always on one thread. It does not know requests; pins tell it what may not move.

A device page is given back only when nothing but steps already launched can touch it; the fence of
the last of those goes with it, and a load into it waits for that fence. Pages under a copy are
never given back.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalesim.core import Fence
from scalesim.memory.agents import AgentState
from scalesim.memory.counters import Counters
from scalesim.memory.links import Copies, Link
from scalesim.memory.order import Use, UseOrder
from scalesim.memory.policies import Policy
from scalesim.memory.pool import PagePool
from scalesim.memory.prefix_tree import PrefixTree
from scalesim.memory.segment import Segment, Transfer

MAX_SAVE_FAILURES = 3
MANY_OWNERS = 16  # a segment shared by more is ordered by last use: some owner is always near


@dataclass(frozen=True, slots=True)
class PlannerConfig:
    """``margin``: slack of the start window as a share of the transfer time; it grows up to
    ``max_margin`` while loads come late. ``jitter_s``: added to every window, seconds.
    ``clean_fraction``: the share of the device pool that cleaning keeps free or clean at least.
    """

    margin: float = 0.25
    max_margin: float = 4.0
    jitter_s: float = 0.005
    clean_fraction: float = 0.25


def start_window_s(num_bytes: int, queued_bytes: int, rate: float, margin: float) -> float:
    """Seconds before its use at which a load must start: its own and the queue's time, with slack."""
    return (1.0 + margin) * (queued_bytes + num_bytes) / rate


class Residency:
    """The two pools' contents. ``now`` and ``seconds_per_step`` are set by the owner before it
    asks."""

    def __init__(
        self,
        tree: PrefixTree,
        policy: Policy,
        device: PagePool,
        host: PagePool,
        link: Link,
        page_bytes: int,
        config: PlannerConfig | None = None,
    ) -> None:
        self.tree, self.policy, self.device, self.host, self.link = tree, policy, device, host, link
        self.page_bytes = page_bytes
        self.config = config or PlannerConfig()
        self.counters = Counters()
        self.now = 0.0
        self.seconds_per_step: float | None = None
        self.last_launched = -1  # the newest step of the compute queue
        self.transfers: dict[int, Transfer] = {}  # by ticket
        self.margin = self.config.margin
        self.num_clean = 0  # device pages, unpinned, that can be had without a copy
        self.saving_pages = 0
        self.demand_waiting = 0  # open demand transfers
        self.refused = False  # the last request for pages had to go away without
        self._seq = 0
        self._evictable: UseOrder[Segment] = UseOrder()
        self._cleanable: UseOrder[Segment] = UseOrder()
        self._host_only: UseOrder[Segment] = UseOrder()
        self._doubled: UseOrder[Segment] = UseOrder(soonest=True)  # on both tiers
        self._awaited: UseOrder[AgentState] = UseOrder(soonest=True)

    # -- uses ---------------------------------------------------------------------------------

    def next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def set_next_use(self, agent: AgentState, next_use: float | None, seq: int) -> None:
        """``agent`` is expected at ``next_use`` (steps); ``None`` = unknown."""
        if agent.next_use == next_use and next_use is None:
            return
        agent.next_use, agent.next_seq = next_use, seq
        if self.policy.order == "next_use":
            for end in agent.paths:
                node: Segment | None = end
                while node is not None and not node.is_root and len(node.owners) <= MANY_OWNERS:
                    self.refresh(node)
                    node = node.parent
        self.await_agent(agent)

    def await_agent(self, agent: AgentState) -> None:
        """Watch for the moment when ``agent``'s start window opens."""
        if not self.policy.look_ahead:
            return
        if agent.next_use is None:
            self._awaited.discard(agent)
        else:
            use = Use(agent.next_use, agent.next_seq, agent.last_use, agent.last_seq)
            self._awaited.add(agent, use)

    def touch(self, segment: Segment) -> None:
        """``segment`` was used now."""
        segment.last_use, segment.last_seq = self.now, self.next_seq()

    def use_of(self, segment: Segment) -> Use:
        if self.policy.order == "last_use":
            return Use(None, 0, segment.last_use, segment.last_seq)
        if self.is_leftover(segment):
            return Use(float("inf"), -segment.last_seq, segment.last_use, segment.last_seq)
        next_use: float | None = None
        next_seq = 0
        if len(segment.owners) <= MANY_OWNERS:
            for owner in segment.owners:
                at = owner.next_use
                if at is not None and (
                    next_use is None or (at, owner.next_seq) < (next_use, next_seq)
                ):
                    next_use, next_seq = at, owner.next_seq
        return Use(next_use, next_seq, segment.last_use, segment.last_seq)

    def is_leftover(self, segment: Segment) -> bool:
        """Whether nobody is likely to ask for it again: never used twice, and its owners' fresh
        paths are not. It leaves first, without a copy."""
        return segment.uses == 0 and all(owner.leaves_tails for owner in segment.owners)

    # -- the orders ---------------------------------------------------------------------------

    def refresh(self, segment: Segment) -> None:
        """Put ``segment`` into the orders that its state belongs to. Call after every change."""
        idle = segment.pins == 0 and segment.load is None and segment.save is None
        clean = 0
        if idle and segment.device:
            clean = min(segment.saved, segment.ready)
            if clean == segment.saved and segment.ready > segment.saved:
                clean = 0  # evicted from the tail: what is dirty comes first
        self.num_clean += clean - segment.clean_counted
        segment.clean_counted = clean
        if not idle:
            for order in (self._evictable, self._cleanable, self._host_only, self._doubled):
                order.discard(segment)
            if self.policy.host and segment.load is None and segment.save is None:
                self._place_copies(segment)
            return
        use = self.use_of(segment)
        if segment.device and segment.device_children == 0:
            self._evictable.add(segment, use)
        else:
            self._evictable.discard(segment)
        if self.policy.host:
            self._place_copies(segment)
            if segment.num_dirty and self._may_save(segment):
                self._cleanable.add(segment, use)
            else:
                self._cleanable.discard(segment)
            if segment.host and not segment.device and segment.content_children == 0:
                self._host_only.add(segment, use)
            else:
                self._host_only.discard(segment)

    def _place_copies(self, segment: Segment) -> None:
        if segment.host and segment.ready >= segment.saved:
            self._doubled.add(segment, self.use_of(segment))
        else:
            self._doubled.discard(segment)

    def is_evictable(self, segment: Segment) -> bool:
        """Whether ``segment`` is among those that may leave the device."""
        return segment in self._evictable

    def forget(self, segment: Segment) -> None:
        """``segment`` left the tree."""
        self.num_clean -= segment.clean_counted
        segment.clean_counted = 0
        for order in (self._evictable, self._cleanable, self._host_only, self._doubled):
            order.discard(segment)

    def _may_save(self, segment: Segment) -> bool:
        return (
            self.policy.host
            and not segment.is_tail
            and segment.failed_saves < MAX_SAVE_FAILURES
            and not self.is_leftover(segment)
        )

    # -- device pages -------------------------------------------------------------------------

    def take(self, count: int, *, ahead_of: Use | None = None) -> list[int] | None:
        """``count`` device pages, evicting what is used last; ``None`` if they cannot be had now.

        Then pages may be on their way (``saving_pages``). With ``ahead_of``, only what is used
        later than that gives way.
        """
        refused = self.device.num_free < count and not self._make_room(count, ahead_of)
        if ahead_of is None:
            self.refused = refused
        return None if refused else self.device.allocate(count)

    def _make_room(self, count: int, ahead_of: Use | None) -> bool:
        while (missing := count - self.device.num_free) > 0:
            victim = self._evictable.peek(self.now)
            if victim is None:
                return False
            if ahead_of is not None and not ahead_of.sooner_than(self.use_of(victim), self.now):
                return False
            if not self._evict(victim, missing) and self.saving_pages >= missing:
                return False  # enough is on its way out
        return True

    def _evict(self, segment: Segment, wanted: int) -> bool:
        """Free up to ``wanted`` pages from the tail of ``segment``; False if it must be saved
        first."""
        dirty = segment.num_dirty
        if dirty and self._may_save(segment) and self.start_save(segment):
            return False
        keep = max(0, len(segment.device) - wanted)
        if dirty:
            keep = max(keep, segment.saved)
            self._drop_below(segment)
            self.counters.dropped_pages += len(segment.device) - keep
        self._free_device(segment, keep)
        if self.policy.look_ahead and segment.host and len(segment.owners) <= MANY_OWNERS:
            for owner in segment.owners:
                self.await_agent(owner)
        self._settle(segment)
        return True

    def _free_device(self, segment: Segment, keep: int) -> None:
        pages = self.tree.trim_device(segment, keep)
        wasted = min(segment.prefetched, len(pages))
        segment.prefetched -= wasted
        self.counters.prefetch_wasted += wasted
        self.counters.evicted_pages += len(pages)
        self.device.free(pages, self.last_launched)

    def drop(self, segment: Segment, keep: int = 0, *, tidy: bool = True) -> None:
        """Forget the content of ``segment`` from block ``keep`` on, and of everything below it: it
        can be rebuilt from its tokens. Nothing of it may be pinned or moving. Without ``tidy`` the
        parent is not merged with what is left below it."""
        self._drop_below(segment)
        assert segment.pins == 0 and segment.load is None and segment.save is None, segment
        self.counters.dropped_pages += max(0, segment.num_available - keep)
        self._free_device(segment, keep)
        self.host.free(self.tree.trim_host(segment, keep))
        self._settle(segment, tidy=tidy)

    def _drop_below(self, segment: Segment) -> None:
        for child in [*segment.children.values(), *segment.tails.values()]:
            self.drop(
                child, tidy=False
            )  # a merge on the way would take ``segment`` out of the tree

    def clear(self) -> None:
        """Forget everything that nobody holds and no copy touches."""
        for segment in list(self.tree):
            if segment.parent is not None and not self._held(segment):
                self.drop(segment)

    def _settle(self, segment: Segment, *, tidy: bool = True) -> None:
        """After pages left ``segment``: cut it to what it still has, and tidy its surroundings."""
        parent = segment.parent
        assert parent is not None
        available = segment.num_available
        if available == 0 and segment.pins == 0:
            self.forget(segment)
            self.tree.remove(segment)
            if tidy:
                self.tidy(parent)
            return
        if available < segment.num_blocks and segment.pins == 0:
            self.tree.shorten(segment, available)
        self.refresh(segment)
        if not parent.is_root:
            self.refresh(parent)

    def tidy(self, segment: Segment) -> None:
        """Merge ``segment`` with its only child if nothing tells them apart any more."""
        joined = self.tree.merge(segment)
        if joined is not None:
            self.forget(segment)
            self.refresh(joined)
        elif not segment.is_root:
            self.refresh(segment)

    # -- copies -------------------------------------------------------------------------------

    def start_load(
        self, parts: list[tuple[Segment, list[int]]], *, demand: bool, waiter: object = None
    ) -> Transfer:
        """Copy the next blocks of each segment into the device pages given for it."""
        device: list[int] = []
        host: list[int] = []
        for segment, pages in parts:
            start = len(segment.device)
            assert segment.load is None and start == segment.ready, segment
            assert start + len(pages) <= segment.saved, (segment, len(pages))
            device += pages
            host += segment.host[start : start + len(pages)]
            self.tree.add_device(segment, pages)
            if not demand:
                segment.prefetched += len(pages)
        counts = [(segment, len(pages)) for segment, pages in parts]
        transfer = Transfer("in", "demand" if demand else "prefetch", counts)
        for segment, _ in parts:
            segment.load = transfer
        fence = self.device.fence(device)
        after = Fence("compute", fence) if fence >= 0 else None
        if demand:
            self.counters.demand_loads += 1
            self.demand_waiting += 1
        else:
            self.counters.prefetched_pages += len(device)
        self.counters.loaded_pages += len(device)
        self._submit(transfer, Copies("in", device, host), after)
        for segment, _ in parts:
            self.refresh(segment)
            if segment.parent is not None and not segment.parent.is_root:
                self.refresh(segment.parent)
        return transfer

    def start_save(self, segment: Segment) -> bool:
        """Copy the dirty blocks of ``segment`` to the host; False if the host has no room for them."""
        self._doubled.discard(segment)
        first, count = segment.saved, segment.num_dirty
        if not self._host_room(count, self.use_of(segment)):
            self.refresh(segment)
            return False
        pages = self.host.allocate(count)
        assert pages is not None
        self.tree.add_host(segment, pages)
        transfer = Transfer("out", "save", [(segment, count)])
        segment.save = transfer
        self.saving_pages += count
        self.counters.saved_pages += count
        self._submit(transfer, Copies("out", segment.device[first : first + count], pages), None)
        self.refresh(segment)
        return True

    def _host_room(self, count: int, use: Use) -> bool:
        """Make ``count`` host pages free: copies of what is on the device go first, the soonest
        used first; then what is used later than ``use``."""
        if count > self.host.num_usable:
            return False
        while self.host.num_free < count:
            double = self._doubled.peek(self.now)
            if double is not None:
                self.host.free(self.tree.trim_host(double, 0))
                self.refresh(double)
                continue
            farthest = self._host_only.peek(self.now)
            if farthest is None or not use.sooner_than(self.use_of(farthest), self.now):
                return False
            keep = max(0, farthest.saved - (count - self.host.num_free))
            self.drop(farthest, keep)
        return True

    def _submit(self, transfer: Transfer, copies: Copies, after: Fence | None) -> None:
        tickets = self.link.submit(copies, after, urgent=transfer.purpose == "demand")
        transfer.tickets.update(tickets)
        for ticket in tickets:
            self.transfers[ticket] = transfer

    def poll(self) -> list[Transfer]:
        """Take in what the link has ended; returns the transfers that are over."""
        over = []
        for ticket, error in self.link.poll():
            transfer = self.transfers.pop(ticket, None)
            if transfer is None:
                self.counters.stale_completions += 1
                continue
            transfer.tickets.discard(ticket)
            transfer.error = transfer.error or error
            if not transfer.tickets:
                self._finish(transfer)
                over.append(transfer)
        return over

    def cancel(self, transfer: Transfer) -> bool:
        """Call back what has not started; True if the transfer is over with that."""
        for ticket in sorted(transfer.tickets):
            if self.link.cancel(ticket):
                transfer.cancelled = True
                transfer.tickets.discard(ticket)
                del self.transfers[ticket]
        if transfer.tickets or not transfer.cancelled:
            return False
        self._finish(transfer)
        return True

    def drain(self) -> None:
        """Call back every copy that has not started, and wait for the others."""
        for transfer in {id(each): each for each in self.transfers.values()}.values():
            self.cancel(transfer)
        while self.transfers and self.link.wait(timeout_s=1.0):
            self.poll()

    def _finish(self, transfer: Transfer) -> None:
        if transfer.direction == "out":
            self._finish_save(transfer)
        else:
            self._finish_load(transfer)

    def _finish_save(self, transfer: Transfer) -> None:
        self.saving_pages -= transfer.num_blocks
        failed = transfer.error is not None
        self.counters.failed_transfers += failed
        for segment, count in transfer.parts:
            segment.save = None
            if failed or transfer.cancelled:
                segment.failed_saves += failed
                self.host.free(self.tree.trim_host(segment, segment.saved))
            else:
                segment.failed_saves = 0
                segment.saved += count
            self.refresh(segment)

    def _finish_load(self, transfer: Transfer) -> None:
        self.demand_waiting -= transfer.purpose == "demand"
        failed = transfer.error is not None
        self.counters.failed_transfers += failed
        for segment, count in transfer.parts:
            segment.load = None
            if not failed and not transfer.cancelled:
                segment.ready += count
        for segment, _ in reversed(transfer.parts):
            if failed or transfer.cancelled:
                self._free_device(segment, segment.ready)
            self.refresh(segment)
            if segment.parent is not None and not segment.parent.is_root:
                self.refresh(segment.parent)

    def lose_host(self, transfer: Transfer) -> None:
        """A load failed: its source cannot be trusted, so its blocks are to be rebuilt. Called when
        no lease holds them any more."""
        top = transfer.parts[0][0]
        if top.parent is not None and not self._held(top):
            self.drop(top, top.ready)

    def _held(self, segment: Segment) -> bool:
        return bool(
            segment.pins
            or segment.load
            or segment.save
            or any(self._held(child) for child in segment.children.values())
            or any(self._held(tail) for tail in segment.tails.values())
        )

    # -- looking ahead ------------------------------------------------------------------------

    def plan(self) -> None:
        """Start the loads whose window is open, soonest first; then, on an idle link, clean.

        Nothing is loaded ahead while a request waits for pages: the two would take them from each
        other in turn, for ever.
        """
        if self.policy.look_ahead and not self.refused:
            self._load_ahead()
        if self.policy.host:
            self._clean()

    def _load_ahead(self) -> None:
        while (agent := self._awaited.peek(self.now)) is not None:
            parts = self._missing(agent)
            if not parts:
                self._awaited.discard(agent)
                continue
            count = sum(blocks for _, blocks in parts)
            if not self._window_open(agent, count):
                return
            use = Use(agent.next_use, agent.next_seq, agent.last_use, agent.last_seq)
            pages = self.take(count, ahead_of=use)
            if pages is None:
                return
            parts = self._missing(agent)  # making room may have merged or dropped segments
            if sum(blocks for _, blocks in parts) != count:
                self.device.free(pages)
                return
            self._awaited.discard(agent)
            shares = []
            for segment, blocks in parts:
                shares.append((segment, pages[:blocks]))
                pages = pages[blocks:]
            self.start_load(shares, demand=False)

    def _missing(self, agent: AgentState) -> list[tuple[Segment, int]]:
        """What of ``agent``'s paths is on the host only, parents first, the most used path first."""
        parts: dict[Segment, int] = {}
        for end in sorted(agent.paths, key=lambda path: -agent.paths[path]):
            chain = []
            node: Segment | None = end
            while node is not None and not node.is_root:
                chain.append(node)
                node = node.parent
            for segment in reversed(chain):
                if segment.load is not None:
                    break
                blocks = segment.saved - len(segment.device)
                if blocks > 0:
                    parts[segment] = blocks
                if segment.num_available < segment.num_blocks:
                    break
        return list(parts.items())

    def _window_open(self, agent: AgentState, count: int) -> bool:
        assert agent.next_use is not None
        steps = agent.next_use - self.now
        if self.seconds_per_step is None:  # no idea of time yet: one step ahead
            return steps <= 1.0
        num_bytes = count * self.page_bytes
        queued = self.link.queued_bytes("in")
        window_s = start_window_s(num_bytes, queued, self.link.rate("in"), self.margin)
        return steps * self.seconds_per_step <= window_s + self.config.jitter_s

    def observe_arrival(self, *, late: bool) -> None:
        """An agent with a known next use called: was its state there? The window grows when it was
        not, and shrinks back slowly when it was."""
        if late:
            self.margin = min(self.config.max_margin, self.margin * 1.25 + 0.05)
        else:
            self.margin = max(self.config.margin, self.margin * 0.99)

    def _clean(self) -> None:
        target = int(self.config.clean_fraction * self.device.num_usable)
        while (
            self.device.num_free + self.num_clean + self.saving_pages < target
            and not self.demand_waiting
            and (segment := self._cleanable.peek(self.now)) is not None
        ):
            if not self.start_save(segment):
                self._cleanable.discard(segment)  # until its state changes
