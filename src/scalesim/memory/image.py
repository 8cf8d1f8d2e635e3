"""An image of memory: the prefix tree, its owners, and where each block's content lies, as plain
values.

``image_of`` takes it at one moment, on the engine's thread, and copies no page. Pages are read
afterwards, in pieces, between steps: the KV of a path never changes, so what is read later is the
same, and what was dropped meanwhile is left out. What is on the disk alone is read beside the
steps, and known by its checksum. ``put_image`` puts an image into memory that is
empty.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np

from scalesim.core import AgentId, Bytes2D, TierName
from scalesim.memory.disk.slot_store import SlotStore
from scalesim.memory.manager import MemoryManager
from scalesim.memory.pools.page_access import PageAccess, PoolName
from scalesim.memory.tiers import Tier
from scalesim.memory.tree.branches import weights_in
from scalesim.memory.tree.owner import AgentState, AgentStatistics
from scalesim.memory.tree.prefix_tree import TEXT
from scalesim.memory.tree.segment import Segment
from scalesim.memory.tree.walk import lineage

NOBODY = -1
"""No segment, or no agent, where an index stands."""


class SegmentImage(NamedTuple):
    """A segment of blocks of ``block_size`` tokens. ``parent`` is an index of
    ``MemoryImage.segments``, ``partial_of`` one of its ``agents``, or ``NOBODY``. The first
    ``num_content`` of its blocks have content; ``on_device``: all of these on the device;
    ``on_disk``: some of these on the disk alone."""

    parent: int
    tokens: bytes
    mark: bytes
    partial_of: int
    num_content: int
    on_device: bool
    on_disk: bool
    reused: bool
    last_use: float
    last_seq: int
    block_size: int


class AgentImage(NamedTuple):
    """An agent: what is known of its calls, its ``paths`` (segment, reuses, number of the call that
    used the segment last), and the order of its next use."""

    id: AgentId
    statistics: AgentStatistics
    paths: tuple[tuple[int, int, int], ...]
    newest_end: int
    last_match: int
    next_seq: int


class ReuseImage(NamedTuple):
    """How all agents reuse their paths: ``ReuseStats``."""

    continuation_rate: float
    num_observed: int
    return_rate: list[float]


@dataclass(slots=True)
class MemoryImage:
    """What memory holds. Parents stand before their children. ``block_size`` is of the engine's own
    model. ``now``, ``tick_s`` and ``move`` are
    as in ``Timing``."""

    block_size: int
    now: float
    tick_s: float | None
    move: float
    reuse: ReuseImage
    segments: list[SegmentImage] = field(default_factory=list)
    agents: list[AgentImage] = field(default_factory=list)


class BlockRange(NamedTuple):
    """``num_blocks`` blocks, from ``first`` on, of the segment with this index in an image."""

    segment: int
    first: int
    num_blocks: int


class CopiedBlocks(NamedTuple):
    """The blocks of some ranges. Of each range: first ``rows``, uint8 ``[n, page_bytes]``, then
    what is in ``slots`` of ``store``, with ``checksums``."""

    store: SlotStore | None
    rows: list[Bytes2D]
    slots: list[list[int]]
    checksums: list[list[int]]

    def read(self) -> list[Bytes2D]:
        """The pages of each range, uint8 ``[n, page_bytes]``, as many as are still there. On any
        thread."""
        slots, checksums = list(chain(*self.slots)), list(chain(*self.checksums))
        if self.store is None or not slots:
            return self.rows
        found, sound = self.store.copy(slots, checksums)
        pages, start = [], 0
        for rows, of_range in zip(self.rows, self.slots, strict=True):
            end = start + len(of_range)
            count = [*sound[start:end], False].index(False)
            parts = [part for part in (rows, found[start : start + count]) if len(part)]
            pages.append(np.concatenate(parts) if parts else rows)
            start = end
        return pages


class LiveBlocks:
    """The segments of an image, as long as memory has them: until they are dropped, or memory
    begins anew."""

    def __init__(self, memory: MemoryManager, segments: list[Segment]) -> None:
        self._memory, self._tree = memory, memory.tree
        self._segments = [(found, found.parent, found.tokens) for found in segments]

    def copy(
        self,
        ranges: Sequence[BlockRange],
        access: PageAccess,
        store: SlotStore | None,
    ) -> CopiedBlocks:
        """The first blocks of each range, as many as still have content; without a ``store``, as
        many as have it on the device or the host. On the engine's thread, between two steps."""
        wanted: dict[PoolName, list[int]] = {"device": [], "host": []}
        found: list[list[tuple[PoolName, int]]] = [[] for _ in ranges]
        slots: list[list[int]] = [[] for _ in ranges]
        for number, (index, first, count) in enumerate(ranges):
            for tier, page in self._places(index, first, count):
                if tier == "disk":
                    slots[number].append(page)
                else:
                    found[number].append((tier, len(wanted[tier])))
                    wanted[tier].append(page)
        rows = {place: access.read(place, pages) for place, pages in wanted.items() if pages}
        copied: list[Bytes2D] = [
            np.stack([rows[place][at] for place, at in places])
            if places
            else np.empty((0, 0), np.uint8)
            for places in found
        ]
        if store is None:
            return CopiedBlocks(None, copied, [], [])
        return CopiedBlocks(store, copied, slots, [store.checksums(of) for of in slots])

    def _places(self, index: int, first: int, count: int) -> Iterator[tuple[TierName, int]]:
        segment, parent, tokens = self._segments[index]
        block_bytes = segment.block_bytes
        if segment.parent is not parent or self._memory.tree is not self._tree:
            return  # dropped, taken over by a lease, split, or merged with its parent
        for block in range(first, first + count):
            begin, end = block * block_bytes, (block + 1) * block_bytes
            if segment.tokens[begin:end] != tokens[begin:end]:
                return
            if block < segment.device.valid:
                yield "device", segment.device[block]
            elif block < segment.host.valid:
                yield "host", segment.host[block]
            elif block < segment.disk.valid:
                yield "disk", segment.disk[block]
            else:
                return


def image_of(
    memory: MemoryManager, is_wanted: Callable[[AgentId], bool]
) -> tuple[MemoryImage, LiveBlocks]:
    """The image of ``memory``, with the agents that are wanted, and without what others alone own.
    Costs some microseconds a segment and agent. Adapters are left out: they are read from their
    sources again."""
    states = [state for state in memory.owners.agents.values() if is_wanted(state.id)]
    number = {state.id: index for index, state in enumerate(states)}
    stats = memory.owners.reuse_stats
    reuse = ReuseImage(stats.continuation_rate, stats.num_observed, list(stats.return_rate))
    timing = memory.timing
    image = MemoryImage(memory.block_size, timing.now, timing.tick_s, timing.move, reuse)
    place: dict[Segment | None, int] = dict.fromkeys(memory.tree.roots(TEXT), NOBODY)
    live: list[Segment] = []
    for segment in memory.tree:
        parent = place.get(segment.parent)
        if parent is None or segment.is_attachment or not _is_of(segment, number):
            continue
        of = segment.partial_of
        place[segment] = len(live)
        live.append(segment)
        in_memory = max(segment.device.valid, segment.host.valid)
        num_content = max(in_memory, segment.disk.valid)
        image.segments.append(
            SegmentImage(
                parent,
                segment.tokens,
                segment.mark,
                NOBODY if of is None else number[of],
                num_content,
                0 < segment.device.valid == num_content,
                in_memory < num_content,
                segment.num_hits > 0,
                segment.last_use,
                segment.last_seq,
                segment.block_size,
            )
        )
    image.agents.extend(_agent_image(state, place) for state in states)
    return image, LiveBlocks(memory, live)


def _is_of(segment: Segment, wanted: Container[AgentId]) -> bool:
    """Whether ``segment`` is of one of the ``wanted`` agents, or of nobody: not of others alone,
    as a partial block of one of them is."""
    if segment.partial_of is not None:
        return segment.partial_of in wanted
    return not segment.owners or any(owner.id in wanted for owner in segment.owners)


def _agent_image(state: AgentState, place: dict[Segment | None, int]) -> AgentImage:
    paths = tuple(
        (place[end], reuses, end.owners.get(state, state.calls))
        for end, reuses in state.paths.items()
        if end in place
    )
    return AgentImage(
        state.id,
        state.statistics,
        paths,
        NOBODY if state.newest_end is None else place.get(state.newest_end, NOBODY),
        NOBODY if state.last_match is None else place.get(state.last_match, NOBODY),
        state.next_seq,
    )


# -- and back -----------------------------------------------------------------------------------

ReadBlocks = Callable[[int, int], Bytes2D]
"""``(segment, count)``: the pages of the first blocks of a segment of an image, uint8
``[n, page_bytes]``; fewer than ``count`` where a page is not sound."""


def leave_out_others(image: MemoryImage, weights: Collection[bytes]) -> int:
    """Take the content from the segments of ``image`` that models beside the engine's own computed
    with other weights than these, which nobody asks for. Returns the number of such models."""
    others: dict[int, bytes] = {}  # by index
    for index, found in enumerate(image.segments):
        own = weights_in(found.mark)
        if found.parent in others or (own and own not in weights):
            others[index] = own or others[found.parent]
            image.segments[index] = found._replace(num_content=0)
    return len({*others.values()})


class Placed(NamedTuple):
    """``num_pages`` have a place in a pool. ``num_left_out`` of the pages in the image have none:
    the pools had no room for them, or for pages above them, or they were not sound."""

    num_pages: int
    num_left_out: int


def put_image(
    memory: MemoryManager,
    image: MemoryImage,
    read: ReadBlocks,
    access: PageAccess,
    store: SlotStore | None,
) -> Placed:
    """Put ``image`` into ``memory``, which is empty, and whose disk is ``store``. Pages come to the
    tier on which they were, as far as there is room, the others to another one; what has no room
    is left out, with all that is behind it. Next uses are not told here."""
    made: dict[int, Segment] = {}
    placed = sum(
        _put_segment(memory, image, index, made, read, access, store)
        for index in range(len(image.segments))
    )
    put_agents(memory, image, made)
    by_use = sorted(made, key=lambda index: image.segments[index].last_seq)
    for index in by_use:
        made[index].touch(image.segments[index].last_use, memory.ranking.next_seq())
    for segment in made.values():
        memory.ranking.refresh(segment)
    return Placed(placed, sum(found.num_content for found in image.segments) - placed)


def _put_segment(
    memory: MemoryManager,
    image: MemoryImage,
    index: int,
    made: dict[int, Segment],
    read: ReadBlocks,
    access: PageAccess,
    store: SlotStore | None,
) -> int:
    """Make segment ``index`` of ``image`` below its parent. Returns its number of pages; 0 if it is
    left out."""
    found, tree = image.segments[index], memory.tree
    if found.parent == NOBODY:
        parent: Segment | None = tree.root(TEXT, block_size=found.block_size)
    else:
        parent = made.get(found.parent)
    if parent is None or not found.num_content:
        return 0
    if found.parent != NOBODY and len(parent.tokens) < len(image.segments[found.parent].tokens):
        return 0  # the end of the parent was left out
    is_partial = found.partial_of != NOBODY
    tier = _tier_for(memory, found, parent, is_partial, store is not None)
    if tier is None:
        return 0
    rows = read(index, min(found.num_content, tier.pool.num_free))
    pages = tier.pool.allocate(len(rows)) if len(rows) else None
    if pages is None:
        return 0
    if tier.name != "disk":
        access.write(tier.name, pages, rows)
    elif store is not None and not _is_written(store, pages, rows):
        memory.residency.drops.free(tier, pages)
        return 0
    if is_partial:
        agent = image.agents[found.partial_of].id
        segment = tree.insert_partial(parent, found.tokens, agent, found.mark)
    else:
        segment = tree.insert(parent, found.tokens[: len(rows) * parent.block_bytes], found.mark)
    tier.put(segment, pages)
    segment.set_reused(found.reused)
    made[index] = segment
    return len(rows)


def _is_written(store: SlotStore, slots: Sequence[int], rows: Bytes2D) -> bool:
    """Write ``rows`` to ``slots``. Returns False for a disk that cannot be written to."""
    try:
        store.write(slots, rows, range(len(rows)))
    except OSError:
        return False
    return True


def _tier_for(
    memory: MemoryManager, found: SegmentImage, parent: Segment, is_partial: bool, has_store: bool
) -> Tier | None:
    """Where the pages of ``found`` go: a tier that has room for all of them or else for some. A
    segment may be on the device where all above it is; a partial block can be nowhere else."""
    device, host, disk = memory.tiers
    may_be_on_device = parent.is_root or parent.is_ready
    tiers = [device] if may_be_on_device else []
    if not is_partial:
        below = [disk] if has_store else []
        if found.on_device:
            tiers = [*tiers, host, *below]
        else:
            tiers = [*below, host, *tiers] if found.on_disk else [host, *tiers, *below]
    roomy = [tier for tier in tiers if tier.pool.num_free >= found.num_content]
    return next((tier for tier in (*roomy, *tiers) if tier.pool.num_free), None)


def put_agents(memory: MemoryManager, image: MemoryImage, made: dict[int, Segment]) -> None:
    """Set the time of ``image``, and give its agents what they owned of the segments that were
    ``made``, by index. A path whose end was left out ends where its last segment is."""
    memory.timing.restore(image.now, image.tick_s, image.move)
    memory.owners.reuse_stats.restore(*image.reuse)
    for index, found in enumerate(image.segments):
        if index in made and found.partial_of != NOBODY:
            made[index].own(memory.owners.agent(image.agents[found.partial_of].id))
    for agent in image.agents:
        state = memory.owners.agent(agent.id)
        paths: dict[Segment, tuple[int, int]] = {}
        for index, reuses, call in agent.paths:
            end = _deepest(image, index, made)
            if end is not None:
                shortened = index not in made
                before, last = paths.get(end, (0, 0))
                paths[end] = max(before, reuses, int(shortened)), max(last, call)
        state.restore(
            agent.statistics,
            [(end, reuses) for end, (reuses, _) in paths.items()],
            made.get(agent.newest_end),
            _deepest(image, agent.last_match, made),
        )
        for end, (_, call) in sorted(paths.items(), key=lambda item: item[1][1]):
            for segment in lineage(end):  # of a segment on several paths, the newest call counts
                segment.own(state, call)


def _deepest(image: MemoryImage, index: int, made: dict[int, Segment]) -> Segment | None:
    """The segment ``index``, or the nearest above it that was made."""
    while index != NOBODY and index not in made:
        index = image.segments[index].parent
    return made.get(index)
