"""Residency: which tier each segment's pages are on, and the moves between tiers: eviction, saves,
loads.

The eviction ranking says which segment leaves first; this file frees, saves and loads pages through
the pools and the link, on the engine's thread. Requests are unknown here: a pinned segment stays.

A device page is freed only when no step but those already launched can touch the page. The pool
keeps the number of the last such step as the page's fence, and a load into the page waits for the
fence. Pages under a copy are never freed.
"""

from __future__ import annotations

import logging
from typing import Protocol

from scalesim.core import Fence
from scalesim.foreign import Foreign, words_of
from scalesim.memory.counters import Counters
from scalesim.memory.eviction.load_or_recompute import LoadOrRecompute
from scalesim.memory.eviction.ranking import EvictionRanking
from scalesim.memory.links.link import Copies, LinkError, PageSource
from scalesim.memory.tiers import Tier, Tiers
from scalesim.memory.timing import Timing
from scalesim.memory.tree.prefix_tree import PrefixTree
from scalesim.memory.tree.run import Transfer
from scalesim.memory.tree.segment import Segment, descendants
from scalesim.memory.tree.use import UseTime

_log = logging.getLogger(__name__)
_SOON_TICKS = 1.0
_WHOLE = 32  # a segment up to this fraction of the pool leaves in one go


class ResidencyListener(Protocol):
    """Is told of what leaves a tier."""

    def evicted(self, segment: Segment) -> None:
        """Pages of ``segment`` left the device."""
        ...

    def attachment_moved(self, segment: Segment) -> None:
        """``segment`` left a tier, or came to the host."""
        ...


class Residency:
    """The contents of the tiers. ``listener`` wants back what leaves them."""

    def __init__(
        self,
        tree: PrefixTree,
        ranking: EvictionRanking,
        listener: ResidencyListener,
        tiers: Tiers,
        page_bytes: int,
        counters: Counters,
        timing: Timing,
    ) -> None:
        link = tiers.host.link
        assert link is not None
        self.tree, self.ranking, self._listener = tree, ranking, listener
        self.tiers, self.link, self.page_bytes = tiers, link, page_bytes
        self.device, self.host = tiers.device.pool, tiers.host.pool
        self.counters, self.timing = counters, timing
        self.policy = policy = ranking.policy
        self.load_or_recompute = LoadOrRecompute(
            link, timing, page_bytes, tree.block_size, weighs=policy.weighs
        )
        self.transfers: dict[int, Transfer] = {}  # by ticket
        self._refused: list[tuple[int, Exception | None]] = []  # that the link would not take
        self._num_refused = 0
        self.saving_pages = 0
        self.filling_pages = 0  # of attachments, on their way from sources to the host
        self.demand_waiting = 0  # open demand transfers
        self.refused = False  # the last request for pages had to go away without
        self._whole = self.device.num_usable // _WHOLE
        self._is_whole = not policy.limited  # nothing left a pool that should hold everything

    # -- eviction: device pages for whoever asks -------------------------------------------------

    def take(self, count: int, *, ahead_of: UseTime | None = None) -> list[int] | None:
        """Allocate ``count`` device pages, evicting what is used last; ``None`` if too few can be
        freed now.

        After a ``None``, pages may be on their way (``saving_pages``). With ``ahead_of``, only
        state that is used later than that gives way.
        """
        refused = self.device.num_free < count and not self._make_room(count, ahead_of)
        if ahead_of is None:
            self.refused = refused
        return None if refused else self.device.allocate(count)

    def _make_room(self, count: int, ahead_of: UseTime | None) -> bool:
        """Evict until ``count`` device pages are free; False if they cannot be had now."""
        ranking = self.ranking
        while (missing := count - self.device.num_free) > 0:
            victim = ranking.farthest_on_device()
            if victim is None:
                return False
            use = ranking.use_of(victim)
            if ahead_of is not None and not ahead_of.sooner_than(use, self.timing.now):
                return False
            if self.saving_pages >= missing and use.distance(self.timing.now) <= _SOON_TICKS:
                return False  # enough that is used later is on its way out
            self._evict(victim, use, missing)
        return True

    def _evict(self, segment: Segment, use: UseTime, wanted: int) -> None:
        """Free about ``wanted`` pages from the end of ``segment``, or start to save it first.

        A small segment leaves whole, even where a part would do: the remainder would leave next
        anyway, and the next allocation gets a longer run of pages. The parent leaves together with
        the segment where the parent would be the next victim, as on the path of a single agent;
        otherwise the parent stays, since it may be needed sooner."""
        if self._is_whole:
            self._is_whole = False
            _log.warning(
                "policy %r should hold all state, and the %d pages that the machine gave are full: "
                "from here on state is dropped and computed again; free memory or run fewer agents",
                self.policy.name, self.device.num_usable,
            )  # fmt: skip
        if (
            segment.num_dirty
            and self.ranking.may_save(segment)
            and self.load_or_recompute.is_worth_saving(segment.num_dirty)
            and self.start_save(segment)
        ):
            return
        keep = max(0, len(segment.device) - max(wanted, self._whole))
        if segment.num_dirty:
            keep = max(keep, segment.host.valid)
            self._drop_below(segment)
            self.counters.dropped_pages += len(segment.device) - keep
        device = self.tiers.device
        pages, leaving = self._cut(device, segment, keep), [segment]
        while (above := self._next_above(leaving[-1], use, wanted - len(pages))) is not None:
            pages = self._cut(device, above, 0) + pages
            leaving.append(above)
        self.free(device, pages)
        top = leaving[-1].parent
        for victim in leaving:
            if victim.parent is not None:  # not merged meanwhile
                self._listener.evicted(victim)
                self._settle(victim)
        if top is not None and top.parent is not None:  # who merged settled nothing above it
            self.ranking.refresh(top)

    def _next_above(self, segment: Segment, use: UseTime, wanted: int) -> Segment | None:
        """The parent of ``segment``, whose pages are gone, if the parent would leave next for
        ``wanted`` more pages: it is used no sooner than ``use``, and can leave whole, at once."""
        above = segment.parent
        if (
            wanted <= 0
            or segment.device
            or above is None
            or above.device_children
            or not 0 < len(above.device) <= max(wanted, self._whole)
            or above.pins
            or above.is_moving
            or above.num_dirty
        ):
            return None
        return None if self.ranking.use_of(above).sooner_than(use, self.timing.now) else above

    # -- saving: to the host ---------------------------------------------------------------------

    def start_save(self, segment: Segment) -> bool:
        """Copy the dirty blocks of ``segment`` to the host; False if the host has no room for
        them."""
        first, count = segment.host.valid, segment.num_dirty
        if not self._host_room(count, segment):
            self.ranking.refresh(segment)
            return False
        pages = self.host.allocate(count)
        assert pages is not None
        transfer = Transfer("out", "save", [(segment, count)])
        self.tiers.host.put(segment, pages, transfer)
        self.saving_pages += count
        self.counters.saved_pages += count
        dirty = segment.device[first : first + count].tolist()
        self._submit(transfer, Copies("out", dirty, pages), None)
        self.ranking.refresh(segment)
        return True

    def _host_room(self, count: int, saved: Segment) -> bool:
        """Make ``count`` host pages free for ``saved``: copies of what is on the device go first,
        the soonest used first; then what is used later than ``saved``.

        Of two that are used at the same time, neither takes the other's copy: they would take it
        from each other in turn, for ever."""
        ranking = self.ranking
        if count > self.host.num_usable:
            return False
        while self.host.num_free < count:
            use = ranking.use_of(saved)
            double = ranking.soonest_doubled(saved)
            if double is not None and ranking.use_of(double).sooner_than(use, self.timing.now):
                self.free(self.tiers.host, self.tiers.host.cut(double, 0))
                self.ranking.refresh(double)
                continue
            farthest = ranking.farthest_on_host()
            if farthest is None or not use.sooner_than(ranking.use_of(farthest), self.timing.now):
                return False
            keep = max(0, farthest.host.valid - (count - self.host.num_free))
            if farthest.is_attachment:
                keep = 0  # a part of one is of no use
            self._drop_below(farthest)
            self._drop_one(farthest, keep, tidy=False)  # merging here could change ``saved``
        return True

    # -- loading: to the device ------------------------------------------------------------------

    def start_load(self, parts: list[tuple[Segment, list[int]]], *, demand: bool) -> Transfer:
        """Copy the next blocks of each segment from the host into the device pages given for it.

        Every load of computed state starts here: on demand from a lease, or ahead of time from the
        planner. The copy waits for the last step that may still touch the pages."""
        device: list[int] = []
        host: list[int] = []
        counts = [(segment, len(pages)) for segment, pages in parts]
        transfer = Transfer("in", "demand" if demand else "prefetch", counts)
        for segment, pages in parts:
            start = len(segment.device)
            assert start + len(pages) <= segment.host.valid, (segment, len(pages))
            device += pages
            host += segment.host[start : start + len(pages)]
            self.tiers.device.put(segment, pages, transfer)
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
            self.ranking.refresh(segment)
            self._refresh_parent(segment)
        return transfer

    def start_read(self, segment: Segment, pages: list[int], *, demand: bool = True) -> Transfer:
        """Read the missing pages of an attachment from its source into the device ``pages``."""
        first = len(segment.device)
        assert segment.source is not None, segment
        fence = self.device.fence(pages)
        after = Fence("compute", fence) if fence >= 0 else None
        transfer = Transfer("in", "demand" if demand else "prefetch", [(segment, len(pages))])
        self.tiers.device.put(segment, pages, transfer)
        if demand:
            self.counters.demand_loads += 1
            self.demand_waiting += 1
            self.counters.read_pages += len(pages)
        else:
            self.counters.read_ahead_pages += len(pages)
        self._submit(transfer, Copies("in", pages, [], segment.source, first), after)
        self.ranking.refresh(segment)
        return transfer

    def start_fill(self, segment: Segment, source: PageSource, *, make_room: bool = False) -> bool:
        """Read all of ``source`` into host pages for ``segment``; False if too few are free. With
        ``make_room``, state that is used later gives way."""
        if make_room:
            if not self._host_room(segment.num_blocks, segment):
                return False
            self.counters.read_ahead_pages += segment.num_blocks
        pages = self.host.allocate(segment.num_blocks)
        if pages is None:
            return False
        self.filling_pages += len(pages)
        transfer = Transfer("out", "fill", [(segment, len(pages))])
        self.tiers.host.put(segment, pages, transfer)
        self._submit(transfer, Copies("out", [], pages, source), None)
        self.ranking.refresh(segment)
        return True

    # -- transfers: from submission to their end -------------------------------------------------

    def _submit(self, transfer: Transfer, copies: Copies, after: Fence | None) -> None:
        """Give ``copies`` to the link. A copy that is refused fails with the next ``poll``."""
        tickets: list[int] = []
        with Foreign() as raised:
            tickets = self.link.submit(copies, after, urgent=transfer.purpose == "demand")
        if isinstance(raised.error, AssertionError):
            raise raised.error  # a rule was broken, by us or by the link: that is no refusal
        if raised.error is not None:  # it has begun nothing; the transfer fails with the next poll
            self._num_refused += 1
            tickets = [-self._num_refused]
            why = f"the link took no copy of {copies.num_pages} pages: {words_of(raised.error)}"
            refusal = LinkError(why)
            refusal.__cause__ = raised.error
            self._refused.append((tickets[0], refusal))
        transfer.tickets.update(tickets)
        for ticket in tickets:
            self.transfers[ticket] = transfer

    def poll(self) -> list[Transfer]:
        """Take in the copies that the link has ended; returns the transfers that are over."""
        over = []
        refused, self._refused = self._refused, []
        for ticket, error in (*refused, *self.link.poll()):
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

    def _finish(self, transfer: Transfer) -> None:
        """A transfer is over: its blocks are valid, or its pages are free again."""
        if transfer.purpose == "save":
            self.saving_pages -= transfer.num_blocks
        elif transfer.purpose == "fill":
            self.filling_pages -= transfer.num_blocks
        self.demand_waiting -= transfer.purpose == "demand"
        self.counters.failed_transfers += transfer.error is not None
        tier: Tier = getattr(self.tiers, transfer.tier)
        for segment, _ in reversed(transfer.parts):
            if not segment.end_transfer(tier.name):
                self.free(tier, self._cut(tier, segment, tier.run(segment).valid))
                self._refresh_parent(segment)
            self.ranking.refresh(segment)
            if transfer.purpose == "fill":
                self._listener.attachment_moved(segment)
        for segment, _ in transfer.parts:
            if segment.is_attachment:
                self.settle_attachment(segment)

    def _refresh_parent(self, segment: Segment) -> None:
        parent = segment.parent
        if parent is None or parent.is_root or parent.pins or parent.device.transfer:
            return
        self.ranking.refresh(parent)

    def cancel(self, transfer: Transfer) -> bool:
        """Call back the copies that have not started; whether the transfer is over with that."""
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
        for transfer in {id(moved): moved for moved in self.transfers.values()}.values():
            self.cancel(transfer)
        while self.transfers and self.link.wait(timeout_s=1.0):
            self.poll()

    # -- dropping: content that is forgotten on both tiers ---------------------------------------

    def drop(self, segment: Segment, keep: int = 0) -> None:
        """Forget the content of ``segment`` from block ``keep`` on, and of everything below it: the
        content can be rebuilt from its tokens. No part of it may be pinned or moving."""
        self._drop_below(segment)
        self._drop_one(segment, keep, tidy=True)

    def drop_if_free(self, segment: Segment) -> bool:
        """Drop ``segment``, unless a node of its subtree is pinned or moving; whether it was
        dropped."""
        if self._held(segment):
            return False
        self.drop(segment)
        return True

    def clear(self) -> None:
        """Drop all that no lease pins and no copy touches."""
        for segment in list(self.tree):
            if segment.parent is not None:
                self.drop_if_free(segment)

    def settle_attachment(self, segment: Segment) -> None:
        """Drop an attachment that was removed, once no lease pins it."""
        if segment.source is None and segment.parent is not None and not self._held(segment):
            self.drop(segment)

    def lose_host(self, transfer: Transfer) -> None:
        """A load failed, so what it read cannot be trusted: drop the blocks that are not on the
        device. They are rebuilt. To be called when no lease pins them any more."""
        for segment, _ in transfer.parts:
            if segment.parent is not None and not self._held(segment):
                self.drop(segment, segment.device.valid)

    def _drop_below(self, segment: Segment) -> None:
        for child in reversed(list(descendants(segment))):
            self._drop_one(child, 0, tidy=False)  # merging here could take ``segment`` away

    def _drop_one(self, segment: Segment, keep: int, *, tidy: bool) -> None:
        assert segment.pins == 0 and not segment.is_moving, segment
        self.counters.dropped_pages += max(0, segment.num_available - keep)
        for tier in self.tiers:
            if len(tier.run(segment)) > keep:
                self.free(tier, self._cut(tier, segment, keep))
        self._settle(segment, tidy=tidy)

    def _held(self, segment: Segment) -> bool:
        """Whether a node of the subtree of ``segment`` is pinned or moving."""
        return any(node.pins or node.is_moving for node in (segment, *descendants(segment)))

    # -- after pages left: pools and tree --------------------------------------------------------

    def free(self, tier: Tier, pages: list[int]) -> None:
        """Give ``pages`` back to the pool of ``tier``. Launched steps may still touch pages of the
        device, so their fence is the newest step."""
        tier.pool.free(pages, self.timing.last_launched if tier is self.tiers.device else -1)

    def _cut(self, tier: Tier, segment: Segment, keep: int) -> list[int]:
        """Take the pages of ``segment`` on ``tier`` from block ``keep`` on; the caller frees
        them."""
        prefetched = segment.prefetched
        pages = tier.cut(segment, keep)
        if tier is self.tiers.device:
            self.counters.prefetch_wasted += prefetched - segment.prefetched
            self.counters.evicted_pages += len(pages)
        return pages

    def _settle(self, segment: Segment, *, tidy: bool = True) -> None:
        """Pages left ``segment``: shorten it to the blocks that still have content (remove it, if
        none has), and rank it and its parent again."""
        parent = segment.parent
        assert parent is not None
        available = segment.num_available
        if segment.source is not None:  # known without pages: it is read again when it is needed
            self.ranking.refresh(segment)
            self._listener.attachment_moved(segment)
            return
        if available == 0 and segment.pins == 0:
            self.ranking.forget(segment)
            self.tree.remove(segment)
            if not (tidy and self.tidy(parent)) and not parent.is_root:
                self.ranking.refresh(parent)
            return
        if available < segment.num_blocks and segment.pins == 0:
            self.tree.shorten(segment, available)
        self.ranking.refresh(segment)
        if not parent.is_root:
            self.ranking.refresh(parent)

    def tidy(self, segment: Segment) -> bool:
        """Merge ``segment`` with its only child if nothing tells them apart any more; whether it
        did."""
        joined = self.tree.merge(segment)
        if joined is None:
            return False
        self.ranking.forget(segment)
        self.ranking.refresh(joined)
        return True
