"""Residency: which pages of each segment are on which tier, and the moves to and from the device:
eviction, saves, loads and reads.

The eviction ranking chooses the segments; this file frees, saves and loads their pages through the
pools and the link, on the engine's thread. Requests are unknown here: a pinned segment stays on the
device. ``disk`` has the moves between host and disk, ``room`` says what leaves the tiers below the
device, ``drops`` what is forgotten.

Pages that a copy uses are never freed. A load into device pages waits for their fence.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import TypeAlias

from scalesim.core import Fence
from scalesim.foreign import words_of
from scalesim.memory.compaction import Compaction, MovePages, RunSearch
from scalesim.memory.counters import Counters
from scalesim.memory.disk.moves import DiskMoves
from scalesim.memory.drops import Drops, ResidencyListener
from scalesim.memory.eviction.load_or_recompute import LoadOrRecompute
from scalesim.memory.eviction.ranking import MAX_SAVE_FAILURES, EvictionRanking
from scalesim.memory.links.link import Copies, PageSource
from scalesim.memory.room import Room
from scalesim.memory.tiers import Tier, Tiers
from scalesim.memory.timing import Timing
from scalesim.memory.transfers import OpenTransfers
from scalesim.memory.tree.next_use import NextUse
from scalesim.memory.tree.prefix_tree import PrefixTree
from scalesim.memory.tree.run import Transfer
from scalesim.memory.tree.segment import Segment
from scalesim.memory.tree.walk import descendants

RunPlaces: TypeAlias = Sequence[tuple[int, int]]
"""Of some pages, which lie on consecutive pages: (offset, length) of each such part."""
_log = logging.getLogger(__name__)
_SMALL_SHARE = 32  # a segment of up to 1 / 32 of the pool is evicted whole


class Residency:
    """The pages of all segments on all tiers.

    ``allocation_failed``: the last ``take`` for a request got no pages, so that nothing should be
    loaded ahead now. A ``take`` with ``ahead_of`` is not for a request, and does not count.
    """

    def __init__(
        self,
        tree: PrefixTree,
        ranking: EvictionRanking,
        listener: ResidencyListener,
        tiers: Tiers,
        page_bytes: int,
        counters: Counters,
        timing: Timing,
        move_pages: MovePages | None = None,
    ) -> None:
        link = tiers.host.link
        assert link is not None
        self.tree, self.ranking, self._listener = tree, ranking, listener
        self.drops = Drops(tree, ranking, listener, tiers, counters, timing)
        self.room = Room(ranking, self.drops, tiers, timing)
        self.tiers, self.link, self.page_bytes = tiers, link, page_bytes
        self.device, self.host = tiers.device.pool, tiers.host.pool
        self.compaction = Compaction(tree, tiers.device, self.drops, counters, move_pages)
        self.counters, self.timing = counters, timing
        self.policy = policy = ranking.policy
        self.load_or_recompute = LoadOrRecompute(link, timing, page_bytes, weighs=policy.weighs)
        self.transfers = OpenTransfers(link, counters)
        self.disk = DiskMoves(
            ranking, tiers, link, self.room, self.transfers, counters, self.load_or_recompute
        )
        self.allocation_failed = False
        self._num_finished = 0  # transfers
        self._in_vain: RunSearch | None = None  # the newest of ``take_first``
        self._small_segment = self.device.num_usable // _SMALL_SHARE
        self._holds_everything = not policy.limited  # until the first eviction

    # -- eviction: device pages for requests and prefetches --------------------------------------

    def take(
        self, count: int, *, ahead_of: NextUse | None = None, runs: RunPlaces = (),
        held: Collection[Segment] = (),
    ) -> list[int] | None:  # fmt: skip
        """Allocate ``count`` device pages, evicting the segments that are used last. Those at the
        places ``runs`` (offset, length) are consecutive; the segments ``held`` are pinned once, for
        this request. Returns ``None`` if too few can be freed now.

        After a ``None``, pages may be free soon, once they are saved (``transfers.saving_pages``).
        With ``ahead_of``, the pages are for a load ahead of that use, and only segments that are
        needed later are evicted.
        """
        pages = None
        if self.device.num_free >= count or self._make_room(count, ahead_of):
            pages = (
                self._take_runs(count, runs, ahead_of, held)
                if runs
                else self.device.allocate(count)
            )
        if ahead_of is None:
            self.allocation_failed = pages is None
        return pages

    def take_first(self, count: int, *, ahead_of: NextUse, runs: RunPlaces) -> list[int]:
        """As many of the first of ``count`` device pages as can be had now, for a load ahead of
        that use: of what has to be consecutive, whole ``runs`` (offset, length), in order. Where
        pages suffice and no run does, more is evicted, as much as a run at a time. Planners ask
        again and again: where no run was found, the pool is looked through again only once a page
        was freed, a segment unpinned, or a copy has ended."""
        self._make_room(count, ahead_of)
        count = min(count, self.device.num_free)
        pages: list[int] = []
        for offset, length in runs:
            search = self._search(length)
            if offset + length > count or search.is_in_vain_after(self._in_vain):
                return pages
            while (run := self.compaction.take_run(length)) is None:
                search = self._search(length)
                more = min(self.device.num_free + length, self.device.num_usable)
                self._make_room(more, ahead_of)
                if self.device.num_free == search.num_free:
                    self._in_vain = search
                    return pages
            others = self.device.allocate(offset - len(pages))
            assert others is not None, (offset, length, count)
            pages += [*others, *run]
        others = self.device.allocate(count - len(pages))
        assert others is not None, (count, len(pages))
        return pages + others

    def _search(self, length: int) -> RunSearch:
        return RunSearch(
            length, self.ranking.num_unpinned, self._num_finished, self.device.num_free
        )

    def _take_runs(
        self, count: int, places: RunPlaces, ahead_of: NextUse | None, held: Collection[Segment]
    ) -> list[int] | None:
        """``count`` pages, which are free, with runs at ``places``. What is evicted for a run may
        lie between runs that were found, so that all are looked for anew."""
        while (pages := self._place(count, places, held)) is None:
            if not self._make_room(self.device.num_free + 1, ahead_of):
                return None
        return pages

    def _place(self, count: int, places: RunPlaces, held: Collection[Segment]) -> list[int] | None:
        """``count`` free pages with runs at ``places``: the longest first, the pages between them
        last. ``None``, with nothing taken, if there is no run for one of them."""
        pages: list[int | None] = [None] * count
        for offset, length in sorted(places, key=lambda place: -place[1]):
            run = self.compaction.take_run(length, held)
            if run is None:
                self.drops.free(self.tiers.device, [page for page in pages if page is not None])
                return None
            pages[offset : offset + length] = run
        others = self.device.allocate(pages.count(None))
        assert others is not None, (count, places)
        rest = iter(others)
        return [next(rest) if page is None else page for page in pages]

    def clear_failure(self) -> None:
        """Note that no request waits for pages: loads ahead may take pages again."""
        self.allocation_failed = False

    def _make_room(self, count: int, ahead_of: NextUse | None) -> bool:
        """Evict until ``count`` device pages are free. Returns False if they cannot be had now."""
        ranking = self.ranking
        if count > self.device.num_usable:
            return False
        while (missing := count - self.device.num_free) > 0:
            victim = ranking.farthest_on_device()
            if victim is None:
                return False
            next_use = ranking.next_use(victim)
            if ahead_of is not None and not ranking.may_displace(ahead_of, next_use):
                return False
            ahead = None if ahead_of is None else count
            wanted = missing - self._worth_waiting_for(next_use, missing, ahead)
            if wanted <= 0 or not self._evict(victim, next_use, wanted):
                return False
        return True

    def _worth_waiting_for(self, next_use: NextUse, missing: int, ahead: int | None) -> int:
        """For how many of the ``missing`` pages to wait for saves rather than evict what has
        ``next_use``.

        A load of ``ahead`` pages waits while something is saved that is used later: until then
        neither that nor the path above it can leave. Where a tick is too short to wait, the load
        waits for no more pages than these. A request waits for pages that suffice, if what would
        leave for it is needed at the next move of the clock.
        """
        ranking, now = self.ranking, self.timing.now
        if ahead is None:
            is_soon = next_use.distance(now) < 1.5 * self.timing.move
            return missing if is_soon and self.transfers.saving_pages >= missing else 0
        saves = (each for each in self.transfers.values() if each.purpose == "save")
        later: set[Segment] = set()
        for node in (segment for transfer in saves for segment, _ in transfer.parts):
            while not (node is None or node.is_root or node.pins or node in later) and (
                next_use.sooner_than(ranking.next_use(node), now)
            ):
                later.add(node)
                node = node.parent
        if later and self._has_time(ahead):
            return missing
        return sum(len(segment.device) for segment in later)

    def _has_time(self, count: int) -> bool:
        """Whether a load of ``count`` pages ends within a tick though it waits for a save: both are
        started and found finished only once an iteration."""
        timing, num_bytes = self.timing, self.link.queued_bytes("in") + count * self.page_bytes
        load_s = num_bytes / self.link.rate("in") + 4.0 * timing.iteration_s
        return timing.tick_s is None or load_s < timing.tick_s

    def _evict(self, segment: Segment, next_use: NextUse, wanted: int) -> bool:
        """Free about ``wanted`` pages from the end of ``segment``, or start to save the segment
        first. Returns False if it is better to wait: the host has room once it has spilled.

        A small segment is evicted whole, even where a part would do: the remainder would be evicted
        next anyway, and the next allocation gets longer runs of consecutive pages. What is on the
        disk alone then would be read from there: it is saved too, where nothing is lost by that and
        what is used later leaves the host for it. The parent is
        evicted together with the segment if the parent would be the next victim, as on the path of
        a single agent; otherwise the parent may be needed sooner, and stays.
        """
        if self._holds_everything:
            self._holds_everything = False
            _log.warning(
                "policy %r should hold all state, and the %d pages that the machine gave are full: "
                "from here on state is dropped and computed again; free memory or run fewer agents",
                self.policy.name, self.device.num_usable,
            )  # fmt: skip
        is_on_disk = segment.num_dirty == 0
        is_worth_saving = (
            segment.num_unsaved > 0
            and self.ranking.may_save(segment)
            and not (is_on_disk and self.ranking.unlikely_to_return(segment))
            and self.load_or_recompute.is_worth_saving(segment.num_unsaved, segment.block_size)
        )
        if is_worth_saving:
            if self.start_save(segment, may_lose=not is_on_disk):
                return True
            if not is_on_disk and self.disk.frees_host_soon(segment):
                return False
        keep = max(0, len(segment.device) - max(wanted, self._small_segment))
        keep = segment.runs.start_of(keep)
        if segment.num_dirty:
            if any(below.is_moving for below in descendants(segment)):
                return False  # between host and disk; it is to be dropped too
            keep = segment.runs.start_of(max(keep, segment.host.valid, segment.disk.valid))
            self.drops.drop_below(segment)
            self.counters.dropped_pages += len(segment.device) - keep
        device = self.tiers.device
        pages, leaving = self.drops.cut(device, segment, keep), [segment]
        while (above := self._next_above(leaving[-1], next_use, wanted - len(pages))) is not None:
            pages = self.drops.cut(device, above, 0) + pages
            leaving.append(above)
        self.drops.free(device, pages)
        top = leaving[-1].parent
        for victim in leaving:
            if victim.parent is not None:  # not merged into another meanwhile
                self._listener.evicted(victim)
                self.drops.trim(victim)
        if top is not None and top.parent is not None:  # a merge has not refreshed the top
            self.ranking.refresh(top)
        return True

    def _next_above(self, segment: Segment, next_use: NextUse, wanted: int) -> Segment | None:
        """The parent of ``segment``, if it is the next victim for ``wanted`` more pages:
        ``segment`` has no device pages left, and the parent is used no sooner than ``next_use`` and
        can be evicted whole, now."""
        above = segment.parent
        if (
            wanted <= 0
            or segment.device
            or above is None
            or above.device_children
            or not 0 < len(above.device) <= max(wanted, self._small_segment)
            or above.pins
            or above.is_moving
            or above.num_dirty
        ):
            return None
        is_needed_sooner = self.ranking.next_use(above).sooner_than(next_use, self.timing.now)
        return None if is_needed_sooner else above

    # -- saves: to the host ----------------------------------------------------------------------

    def start_save(self, segment: Segment, *, may_lose: bool = True) -> bool:
        """Copy the blocks of ``segment`` that the host does not have to the host. Returns False if
        the host has no room for them: with ``may_lose``, what is used later may be lost for it."""
        first, count = segment.host.valid, segment.num_unsaved
        if not self.room.to_save(count, segment, may_lose=may_lose):
            self.ranking.refresh(segment)
            return False
        pages = self.host.allocate(count)
        assert pages is not None
        transfer = Transfer("out", "save", [(segment, count)])
        self.tiers.host.put(segment, pages, transfer)
        self.counters.saved_pages += count
        unsaved = segment.device[first : first + count].tolist()
        self.transfers.submit(transfer, Copies("out", unsaved, pages))
        self.ranking.refresh(segment)
        return True

    # -- loads and reads: to the device ----------------------------------------------------------

    def start_load(self, parts: list[tuple[Segment, list[int]]], *, demand: bool) -> Transfer:
        """Copy the next blocks of each segment from the host into the device pages given for it.

        Every load of KV starts here: on demand for a lease, or ahead of time for the planner. The
        copy waits for the fence of the pages, and for blocks that are on their way to the host.
        """
        awaited: dict[int, Transfer] = {}
        device: list[int] = []
        host: list[int] = []
        counts = [(segment, len(pages)) for segment, pages in parts]
        transfer = Transfer("in", "demand" if demand else "prefetch", counts)
        for segment, pages in parts:
            start = len(segment.device)
            assert start + len(pages) <= len(segment.host), (segment, len(pages))
            coming = segment.host.transfer
            if coming is not None and start + len(pages) > segment.host.valid:
                awaited[id(coming)] = coming
            device += pages
            host += segment.host[start : start + len(pages)]
            self.tiers.device.put(segment, pages, transfer)
        fence = self.device.fence(device)
        after = Fence("compute", fence) if fence >= 0 else None
        if demand:
            self.counters.demand_loads += 1
        else:
            self.counters.prefetched_pages += len(device)
        self.counters.loaded_pages += len(device)
        self.transfers.submit(transfer, Copies("in", device, host), after, list(awaited.values()))
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
            self.counters.read_pages += len(pages)
        else:
            self.counters.read_ahead_pages += len(pages)
        self.transfers.submit(transfer, Copies("in", pages, [], segment.source, first), after)
        self.ranking.refresh(segment)
        return transfer

    def start_fill(self, segment: Segment, source: PageSource, *, make_room: bool = False) -> bool:
        """Read all pages of ``source`` into the host, for ``segment``. Returns False if too few
        host pages are free. With ``make_room``, segments that are used later are dropped for it."""
        if make_room:
            if not self.room.to_save(segment.num_blocks, segment):
                return False
            self.counters.read_ahead_pages += segment.num_blocks
        pages = self.host.allocate(segment.num_blocks)
        if pages is None:
            return False
        transfer = Transfer("out", "fill", [(segment, len(pages))])
        self.tiers.host.put(segment, pages, transfer)
        self.transfers.submit(transfer, Copies("out", [], pages, source))
        self.ranking.refresh(segment)
        return True

    # -- the end of transfers --------------------------------------------------------------------

    def poll(self) -> list[Transfer]:
        """Take in the copies that have ended. Returns the transfers that are over."""
        over = self.transfers.poll()
        for transfer in over:
            self._finish(transfer)
        return over

    def cancel(self, transfer: Transfer) -> None:
        """Cancel the copies of ``transfer`` that have not started."""
        if self.transfers.cancel(transfer):
            self._finish(transfer)

    def drain(self) -> None:
        """Cancel every copy that has not started, and wait for the others."""
        for transfer in {id(moved): moved for moved in self.transfers.values()}.values():
            self.cancel(transfer)
        while self.transfers and self.link.wait(timeout_s=1.0):
            self.poll()

    def _finish(self, transfer: Transfer) -> None:
        """Settle a transfer that is over: its blocks are valid now, or its pages are freed."""
        self._num_finished += 1
        self.counters.failed_transfers += transfer.error is not None
        tier: Tier = getattr(self.tiers, transfer.tier)
        for segment, _ in reversed(transfer.parts):
            if not segment.end_transfer(tier.name):
                self.drops.free(tier, self.drops.cut(tier, segment, tier.run(segment).valid))
                self._refresh_parent(segment)
            self.ranking.refresh(segment)
            if transfer.direction == "up" or transfer.purpose == "fill":
                self._listener.host_changed(segment)
            if transfer.purpose == "fill" and segment.failed_saves == MAX_SAVE_FAILURES:
                _log.warning(
                    "%d pages could not be read ahead from their source, %d times: they are read "
                    "when they are asked for, and ahead again once a next use of their agent is "
                    "told: %s", segment.num_blocks, MAX_SAVE_FAILURES, words_of(transfer.error),
                )  # fmt: skip
        for segment, _ in list(transfer.parts):
            if segment.is_attachment:
                self.drops.drop_if_removed(segment)
            elif transfer.direction == "up" and transfer.error is not None:
                self.drops.drop_unreadable(segment)

    def _refresh_parent(self, segment: Segment) -> None:
        parent = segment.parent
        if parent is None or parent.is_root or parent.pins or parent.device.transfer:
            return
        self.ranking.refresh(parent)
