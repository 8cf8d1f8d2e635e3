"""The page watch: a race detector for all accesses to the pages of all pools.

The watch wraps an allocator, a link and a runner, and sees all that passes between them and the
engine. It finds pairs of accesses that nothing orders (by vector clocks of the host, the compute
queue and each copy in flight), and reads of pages that were not written since they were allocated.
Because it checks orders, not bytes, it finds these without an unlucky schedule, and also where the
bytes happen to be right.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from scalesim.batch import Batch, LaunchedStep, Runner, StepOutput
from scalesim.core import Bytes2D, Fence, Int64s, TierName
from scalesim.memory.disk.slot_store import SlotStore
from scalesim.memory.links.link import WAYS, Copies, Link, LinkAround
from scalesim.memory.pools.page_access import PageAccess, PoolName
from scalesim.memory.pools.page_pool import MakePool, Pool
from scalesim.testing.races import Races, VectorClock, join
from scalesim.testing.tags import block_sizes, weight_pages

HOST, COMPUTE = "host", "compute"


class UnwrittenError(AssertionError):
    """A read of a page that was not written since it was allocated: its content belongs to an
    earlier owner."""


@dataclass(slots=True)
class _Submission:
    """One submission of copies, with a queue of its own until its last ticket has ended."""

    lane: str
    clock: VectorClock
    copies: Copies
    open: set[int]
    spoiled: bool = False  # failed or cancelled: its destination holds nothing valid


class PageWatch:
    """The watch of the pools of an engine with blocks of ``block_size`` tokens, and a runner's
    block table of ``num_rows`` × ``max_blocks`` entries."""

    def __init__(
        self,
        device_pages: int,
        host_pages: int,
        block_size: int,
        num_rows: int,
        max_blocks: int,
        disk_pages: int = 0,
    ) -> None:
        self.races = Races()
        self.num_accesses = 0
        self._size = block_size
        self._written = {
            "device": np.zeros((device_pages, block_size), np.bool_),
            "host": np.zeros((host_pages, 1), np.bool_),
            "disk": np.zeros((disk_pages, 1), np.bool_),
        }
        self._tiers = itertools.cycle(self._written)  # of the pools, in the order of their making
        self._table = np.zeros((num_rows, max_blocks), np.int64)
        self._host: VectorClock = {HOST: 0}
        self._compute: VectorClock = {}
        self._steps: dict[int, VectorClock] = {}  # launched, not collected
        self._submissions: dict[int, _Submission] = {}  # by ticket
        self._free_lanes: list[str] = []
        self._numbers = count(1)

    # -- the seams ----------------------------------------------------------------------------

    def pool(self, make: MakePool) -> MakePool:
        """``make`` with pools that report each page they allocate. Pools are made from the device
        down."""

        def watched(num_pages: int, *, first: int = 0) -> Pool:
            tier = next(self._tiers)
            pool = make(num_pages, first=first)
            return cast(Pool, WatchedPool(pool, self._written[tier]))

        return watched

    def link(self, link: Link) -> WatchedLink:
        return WatchedLink(link, self)

    def runner(self, runner: Runner) -> WatchedRunner:
        return WatchedRunner(runner, self)

    def pages(self, access: PageAccess) -> WatchedPages:
        return WatchedPages(access, self)

    def store(self, store: SlotStore) -> SlotStore:
        return cast(SlotStore, WatchedStore(store, self))

    # -- steps --------------------------------------------------------------------------------

    def launches(self, batch: Batch) -> None:
        self._host[HOST] += 1
        join(self._compute, self._host)
        self._compute[COMPUTE] = batch.step + 1
        clock = self._steps[batch.step] = dict(self._compute)
        self._table[batch.table_rows, batch.table_cols] = batch.table_pages
        written, label = self._written["device"], f"step {batch.step}"
        for source, destination in batch.page_copies.tolist():
            self._touch("device", [source], COMPUTE, clock, label, is_write=False)
            self._touch("device", [destination], COMPUTE, clock, label, is_write=True)
            written[destination] = written[source]
        reads: set[int] = set()
        writes: set[int] = set()
        starts = batch.positions[batch.query_start[:-1]].tolist()
        ends = (batch.positions[batch.query_start[1:] - 1] + 1).tolist()
        sizes = block_sizes(batch, self._size).tolist()
        for row, start, end, size in zip(batch.rows.tolist(), starts, ends, sizes, strict=True):
            if row:
                pages = self._table[row, : -(-end // size)]
                writes.update(pages[start // size :].tolist())
                places = np.arange(start, end)
                written[pages[places // size], places % size] = True
                written[pages[start // size :], size:] = True  # nobody reads there
                reads.update(pages.tolist())
                self._expect_written(label, row, pages, end, size)
        for pages in self._attached(batch):
            reads.update(pages.tolist())
            self._expect_written(label, 0, pages, len(pages) * self._size, self._size)
        self._touch("device", sorted(writes), COMPUTE, clock, label, is_write=True)
        self._touch("device", sorted(reads - writes), COMPUTE, clock, label, is_write=False)

    def collected(self, step: int) -> None:
        self._host[HOST] += 1
        join(self._host, self._steps.pop(step))

    def _attached(self, batch: Batch) -> list[Int64s]:
        """The pages of each adapter and of all weights in use, as the tag runner numbers
        layouts."""
        found = []
        for attached in (batch.adapters, batch.weights):
            if attached is None:
                continue
            pairs = zip(attached.rows.tolist(), attached.layouts.tolist(), strict=True)
            for row, layout in {pair for pair in pairs if pair[0]}:
                pages = self._table[row, : layout & 255]
                if attached is batch.weights:
                    heads = pages.tolist()
                    pages = np.array(weight_pages(layout >> 8, layout & 255, heads), np.int64)
                found.append(pages)
        return found

    def _expect_written(self, label: str, row: int, pages: Int64s, end: int, size: int) -> None:
        places = self._written["device"][pages, :size].reshape(-1)[:end]
        if not places.all():
            index = int((~places).argmax())
            raise UnwrittenError(
                f"{label}: row {row}, position {index}: page {pages[index // size]} was not "
                "written there since it was handed out"
            )

    # -- copies -------------------------------------------------------------------------------

    def submits(self, tickets: Sequence[int], copies: Copies, after: Fence | None) -> None:
        self._host[HOST] += 1
        clock = dict(self._host)
        if after is not None:
            join(clock, self._steps.get(after.seq, {}))  # a collected step is ordered by the host
        number = next(self._numbers)
        lane = self._free_lanes.pop() if self._free_lanes else f"copy lane {number}"
        clock[lane] = number
        submission = _Submission(lane, clock, copies, set(tickets))
        for ticket in tickets:
            self._submissions[ticket] = submission
        label = f"copy {copies.direction}, tickets {min(tickets)} to {max(tickets)}"
        origin, to = WAYS[copies.direction]
        if copies.source is None:
            source = list(copies.pages(origin))
            if not self._written[origin][source].all():
                raise UnwrittenError(
                    f"{label}: of {origin} pages {source}, some were not written since they were "
                    "handed out"
                )
            self._touch(origin, source, lane, clock, label, is_write=False)
        self._touch(to, copies.pages(to), lane, clock, label, is_write=True)
        self._written[to][list(copies.pages(to))] = True

    def ended(self, ticket: int, *, arrived: bool) -> None:
        """Note that the host saw ``ticket`` end, or cancelled it."""
        submission = self._submissions.pop(ticket, None)
        if submission is None:
            return
        submission.open.discard(ticket)
        submission.spoiled |= not arrived
        if submission.open:
            return
        copies, lane = submission.copies, submission.lane
        self._host[HOST] += 1
        self._host[lane] = submission.clock[lane]
        self._free_lanes.append(lane)
        if not submission.spoiled:  # what the copy waited for has ended as well
            join(self._host, submission.clock)
        else:
            _, to = WAYS[copies.direction]
            self._written[to][list(copies.pages(to))] = False

    def moves(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Note that device pages are copied, once all steps that were launched are over. Blocks
        that are not full are copied as they are."""
        self._host[HOST] += 1
        join(self._host, self._compute)
        label, written = f"move of device pages {list(sources)}", self._written["device"]
        self._touch("device", sources, HOST, self._host, label, is_write=False)
        self._touch("device", targets, HOST, self._host, label, is_write=True)
        written[list(targets)] = written[list(sources)]

    # -- the host's own accesses --------------------------------------------------------------

    def accesses(self, tier: TierName, pages: Sequence[int], *, is_write: bool) -> None:
        self._host[HOST] += 1
        label = f"{'write' if is_write else 'read'} of {tier} pages {list(pages)}"
        if is_write:
            self._written[tier][list(pages)] = True
        elif not self._written[tier][list(pages)].all():
            raise UnwrittenError(f"{label}: some were not written since they were handed out")
        self._touch(tier, pages, HOST, self._host, label, is_write=is_write)

    def _touch(
        self,
        tier: str,
        pages: Sequence[int],
        who: str,
        clock: VectorClock,
        label: str,
        *,
        is_write: bool,
    ) -> None:
        self.num_accesses += len(pages)
        for page in pages:
            self.races.touch(f"{tier} page", page, who, clock, label, is_write=is_write)


class WatchedPool:
    """A pool whose allocated pages count as unwritten. All else is delegated to the pool."""

    def __init__(self, pool: Pool, written: npt.NDArray[np.bool_]) -> None:
        self._pool, self._written = pool, written

    def allocate(self, count: int) -> list[int] | None:
        pages = self._pool.allocate(count)
        if pages:
            self._written[pages] = False
        return pages

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)


class WatchedLink(LinkAround):
    """A link whose copies the watch sees. All else is delegated to the link."""

    def __init__(self, link: Link, watch: PageWatch) -> None:
        super().__init__(link)
        self._watch = watch

    def submit(
        self, copies: Copies, after: Fence | None = None, *, urgent: bool = False
    ) -> list[int]:
        tickets = self.link.submit(copies, after, urgent=urgent)
        self._watch.submits(tickets, copies, after)
        return tickets

    def poll(self) -> list[tuple[int, Exception | None]]:
        ended = self.link.poll()
        for ticket, error in ended:
            self._watch.ended(ticket, arrived=error is None)
        return ended

    def cancel(self, ticket: int) -> bool:
        cancelled = self.link.cancel(ticket)
        if cancelled:
            self._watch.ended(ticket, arrived=False)
        return cancelled


class WatchedRunner:
    """A runner whose steps the watch sees."""

    def __init__(self, runner: Runner, watch: PageWatch) -> None:
        self.runner, self._watch = runner, watch
        self.steps_in_flight = runner.steps_in_flight

    def launch(self, batch: Batch) -> LaunchedStep:
        self._watch.launches(batch)
        return self.runner.launch(batch)

    def collect(self, step: LaunchedStep) -> StepOutput:
        output = self.runner.collect(step)
        self._watch.collected(step.step)
        return output


class WatchedPages:
    """Page access that the watch sees."""

    def __init__(self, access: PageAccess, watch: PageWatch) -> None:
        self._access, self._watch, self.host = access, watch, access.host

    def read(self, place: PoolName, pages: Sequence[int]) -> Bytes2D:
        self._watch.accesses(place, pages, is_write=False)
        return self._access.read(place, pages)

    def read_there(self, pages: Sequence[int]) -> Any:
        self._watch.accesses("device", pages, is_write=False)
        return self._access.read_there(pages)

    def write(self, place: PoolName, pages: Sequence[int], rows: Bytes2D) -> None:
        self._watch.accesses(place, pages, is_write=True)
        self._access.write(place, pages, rows)

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self._watch.moves(sources, targets)
        self._access.move(sources, targets)


class WatchedStore:
    """A slot store whose writes from the host the watch sees. All else is delegated to the
    store."""

    def __init__(self, store: SlotStore, watch: PageWatch) -> None:
        self._store, self._watch = store, watch

    def write(self, slots: Sequence[int], pool: Bytes2D, pages: Sequence[int]) -> None:
        self._watch.accesses("disk", slots, is_write=True)
        self._store.write(slots, pool, pages)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)
