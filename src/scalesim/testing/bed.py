"""The test bed of the worlds: real memory over tags, with a link, a runner and a page watch.

``Factories`` replaces an allocator, a link, a policy or another part by the one under test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scalesim.batch import Runner
from scalesim.core import AgentId, Bytes2D, Int64s
from scalesim.memory.disk.slot_store import SlotStore
from scalesim.memory.eviction.policies import Policy, policy_named
from scalesim.memory.image import LiveBlocks, MemoryImage, image_of
from scalesim.memory.links.link import Link, Timeline
from scalesim.memory.manager import MemoryManager
from scalesim.memory.pools.page_access import ArrayPages, PageAccess
from scalesim.memory.pools.page_pool import MakePool, PagePool
from scalesim.memory.pools.storage import allocate_pages
from scalesim.testing.array_slots import ArraySlots
from scalesim.testing.hostile_link import HostileLink
from scalesim.testing.page_watch import PageWatch
from scalesim.testing.tag_runner import BadHook, TagRunner, Verify
from scalesim.testing.tags import page_bytes_for

MakeLink = Callable[[Bytes2D, Bytes2D, Timeline, int], Link]
"""``(device, host, timeline, seed)``: both pools ``[num_pages, page_bytes]``, the timeline that
answers for the fences of the compute queue, and what to draw from."""

MakeMemory = Callable[..., MemoryManager]
"""Takes what ``MemoryManager`` takes."""


def hostile_link(device: Bytes2D, host: Bytes2D, timeline: Timeline, seed: int) -> HostileLink:
    """The default: a hostile link of tickets of one page or two."""
    return HostileLink(device, host, timeline, seed=seed, max_ticket_pages=1 + seed % 2)


TakeImage = Callable[[MemoryManager, Callable[[AgentId], bool]], tuple[MemoryImage, LiveBlocks]]
"""Takes what ``image_of`` takes."""


@dataclass(frozen=True)
class Factories:
    """The makers of the parts under test. ``policy`` replaces a world's own; ``runner`` wraps the
    tag runner; with ``watched``, a ``PageWatch`` sees every access. ``store`` makes the slot store
    of the disk, and ``look`` takes images of memory."""

    pool: MakePool = PagePool
    link: MakeLink = hostile_link
    policy: Policy | None = None
    memory: MakeMemory = MemoryManager
    runner: Callable[[Runner], Runner] = lambda runner: runner
    watched: bool = True
    store: Callable[[Bytes2D], SlotStore] = ArraySlots
    look: TakeImage = image_of


OURS = Factories()


class Bed:
    """Memory with pools of ``pages`` (and the null page), ``host_pages`` and ``disk_pages`` pages
    of ``block_size`` tags each; only a hostile link has a disk.

    ``raw_link`` and ``tags`` are the link and the runner themselves; ``link``, ``runner`` and
    ``pages`` have the watch around them, as the engine's parts get them.
    """

    def __init__(
        self,
        factories: Factories,
        *,
        pages: int,
        host_pages: int,
        block_size: int,
        policy: str,
        max_num_seqs: int,
        max_blocks: int,
        steps_in_flight: int,
        seed: int = 0,
        vocab_size: int = 512,
        verify: Verify = "all",
        bad: BadHook | None = None,
        reader: Callable[[int], Int64s] | None = None,
        disk_pages: int = 0,
    ) -> None:
        page_bytes, num_rows = page_bytes_for(block_size), 2 * max_num_seqs + 1
        self.device = allocate_pages(pages + 1, page_bytes)
        self.host = allocate_pages(max(1, host_pages), page_bytes)
        self.disk = allocate_pages(max(1, disk_pages), page_bytes)
        self.timeline = Timeline()
        self.raw_link: Link = factories.link(self.device, self.host, self.timeline, seed)
        self.store = factories.store(self.disk) if disk_pages else None
        if disk_pages:
            assert self.hostile is not None, self.raw_link
            self.hostile.add_disk(self.disk)
        self.tags = TagRunner(
            self.device,
            block_size,
            max_num_seqs=max_num_seqs,
            max_num_rows=num_rows,
            max_blocks_per_row=max_blocks,
            steps_in_flight=steps_in_flight,
            timeline=self.timeline,
            vocab_size=vocab_size,
            verify=verify,
            bad=bad,
            reader=reader,
        )
        self.link: Link = self.raw_link
        self.runner: Runner = self.tags
        self.pages: PageAccess = ArrayPages(self.device, self.host)
        make_pool = factories.pool
        if factories.watched:
            watch = PageWatch(
                pages + 1, max(1, host_pages), block_size, num_rows, max_blocks, disk_pages
            )
            self.link, self.runner = watch.link(self.raw_link), watch.runner(self.tags)
            self.pages, make_pool = watch.pages(self.pages), watch.pool(factories.pool)
            self.store = None if self.store is None else watch.store(self.store)
        self.runner = factories.runner(self.runner)
        self.memory = factories.memory(
            block_size=block_size,
            page_bytes=page_bytes,
            device_pages=pages + 1,
            host_pages=host_pages,
            num_rows=num_rows,
            policy=factories.policy or policy_named(policy),
            link=self.link,
            make_pool=make_pool,
            disk_pages=disk_pages,
            move_pages=self._move_pages,
        )

    def _move_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy pages on the device, behind the steps that were launched."""
        while self.tags.run_next():
            pass
        self.pages.move(sources, targets)

    @property
    def hostile(self) -> HostileLink | None:
        """The link, if it is the hostile one, which can be told to move and to fail."""
        return self.raw_link if isinstance(self.raw_link, HostileLink) else None

    def move(self, count: int = 1) -> None:
        """Let the link work: a hostile one for ``count`` events, another one for a moment."""
        if self.hostile is None:
            self.raw_link.wait(1e-4)
            return
        for _ in range(count):
            self.hostile.step()

    def check_all_free(self) -> None:
        """Check that every page and row is free and no ticket is open, after everything was
        released."""
        memory, residency = self.memory, self.memory.residency
        for pool in (memory.device, memory.host, memory.disk):
            assert pool.num_free == pool.num_usable, f"{pool.num_used} pages are not free"
        assert not residency.transfers, residency.transfers
        assert self.hostile is None or not self.hostile.num_open, self.hostile.num_open
        left = [segment for segment in memory.tree if not segment.runs]  # weights are not removed
        assert not left, left
        transfers = residency.transfers
        assert not (transfers.saving_pages or transfers.spilling_pages or transfers.num_demand)
        assert not memory.loading_pages
        assert memory.table.num_free == memory.table.num_rows - 1
