"""The harness is tested too: bugs of this field, planted one at a time, and each must be found.

A bug is planted with ``monkeypatch`` in one method; seeded walks over several shapes then have to
fail.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from scalesim.batch import LaunchedStep, StepOutput
from scalesim.memory.eviction.ranking import EvictionRanking
from scalesim.memory.eviction.residency import Residency
from scalesim.memory.lease import Lease
from scalesim.memory.leases import partial_blocks as tails_module
from scalesim.memory.leases.block_table import BlockTable
from scalesim.memory.leases.partial_blocks import FoundPartialBlock, PartialBlocks
from scalesim.memory.leases.release import Releases
from scalesim.memory.leases.waiters import LoadWaiters
from scalesim.memory.pools.page_pool import PagePool
from scalesim.memory.tree.prefix_tree import PrefixTree
from scalesim.memory.tree.segment import Segment, Transfer
from scalesim.testing.memory_walk import MemoryWalk
from scalesim.testing.memory_world import MemoryWorld, WorldShape
from scalesim.testing.tag_runner import TagRunner
from scalesim.testing.walks import failure_of

Patch = Callable[[pytest.MonkeyPatch], None]
STEPS, MAX_WALKS = 200, 40
SHAPES = [
    (pages, host, block_size, policy)
    for pages, block_size in [(6, 4), (12, 2), (16, 4), (8, 1), (24, 2)]
    for policy in ("deadline", "lru-swap")
    for host in (2.0, 1.0)
]


def steps_until_found() -> int | None:
    """Walks until one fails: how many there were, at most ``MAX_WALKS``; ``None`` if none did."""
    for seed in range(MAX_WALKS):
        pages, host, block_size, policy = SHAPES[seed % len(SHAPES)]
        shape = WorldShape(pages, host, block_size, policy, seed)
        if failure_of(MemoryWalk(shape, seed, STEPS)) is not None:
            return seed + 1
    return None


PLANTED: dict[str, Patch] = {}


def planted(patch: Patch) -> Patch:
    PLANTED[patch.__name__] = patch
    return patch


@planted
def freed_on_abort_while_a_copy_writes(patch: pytest.MonkeyPatch) -> None:
    def cancel(self: Residency, transfer: Transfer) -> bool:
        for ticket in sorted(transfer.tickets):
            self.link.cancel(ticket)  # whether or not it had started
            transfer.tickets.discard(ticket)
            del self.transfers[ticket]
        transfer.cancelled = True
        self._finish(transfer)
        return True

    patch.setattr(Residency, "cancel", cancel)


@planted
def freed_while_a_save_reads(patch: pytest.MonkeyPatch) -> None:
    start_save = Residency.start_save

    def start_and_free(self: Residency, segment: Segment) -> bool:
        started = start_save(self, segment)
        if started and segment.pins == 0 and not segment.device_children:
            pages = list(segment.device)
            self.device.free(pages, self.last_launched)
            taken = self.device.allocate(len(pages))  # someone else's from now on
            assert taken is not None
            segment.device[:] = array("i", taken)
        return started

    patch.setattr(Residency, "start_save", start_and_free)


@planted
def pinned_and_still_evictable(patch: pytest.MonkeyPatch) -> None:
    def pin(self: EvictionRanking, segment: Segment) -> None:
        segment.pins += 1

    patch.setattr(EvictionRanking, "pin", pin)


@planted
def looked_up_and_pinned_later(patch: pytest.MonkeyPatch) -> None:
    take = Residency.take

    def take_first(self: Residency, count: int, **options: Any) -> list[int] | None:
        pinned = [segment for segment in self.tree if segment.pins]
        held = [segment.pins for segment in pinned]
        for segment in pinned:
            segment.pins = 0
            self.ranking.refresh(segment)
        pages = take(self, count, **options)
        for segment, pins in zip(pinned, held, strict=True):
            segment.pins = pins
            if segment.parent is not None:
                self.ranking.refresh(segment)
        return pages

    patch.setattr(Residency, "take", take_first)


@planted
def fence_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PagePool, "fence", lambda self, pages: -1)


@planted
def freed_twice(patch: pytest.MonkeyPatch) -> None:
    leave_tail = PartialBlocks.leave

    def leave_and_keep(self: PartialBlocks, lease: Lease, rest: bytes) -> None:
        page = lease.private[0]
        leave_tail(self, lease, rest)
        if page not in lease.private:
            lease.private.insert(0, page)

    patch.setattr(PartialBlocks, "leave", leave_and_keep)


@planted
def free_pages_counted_twice(patch: pytest.MonkeyPatch) -> None:
    free = PagePool.free

    def count_again(self: PagePool, pages: Any, fence: int = -1) -> None:
        pages = list(pages)
        free(self, pages, fence)
        self.num_free += len(pages) > 2

    patch.setattr(PagePool, "free", count_again)


@planted
def save_visible_before_done(patch: pytest.MonkeyPatch) -> None:
    start_save = Residency.start_save

    def start_and_show(self: Residency, segment: Segment) -> bool:
        count = segment.num_dirty
        started = start_save(self, segment)
        if started and (save := segment.host.transfer) is not None:
            save.parts = []
            self.saving_pages -= count
            segment.host.transfer = None
            segment.host.valid += count
            self.ranking.refresh(segment)
        return started

    patch.setattr(Residency, "start_save", start_and_show)


@planted
def failed_save_visible(patch: pytest.MonkeyPatch) -> None:
    finish = Residency._finish

    def ignore(self: Residency, transfer: Transfer) -> None:
        if transfer.tier == "host":
            transfer.error = None
        finish(self, transfer)

    patch.setattr(Residency, "_finish", ignore)


@planted
def failed_load_taken_for_done(patch: pytest.MonkeyPatch) -> None:
    finish = Residency._finish

    def ignore(self: Residency, transfer: Transfer) -> None:
        if transfer.tier == "device":
            transfer.error = None
        finish(self, transfer)

    patch.setattr(Residency, "_finish", ignore)


@planted
def unfinished_block_committed(patch: pytest.MonkeyPatch) -> None:
    commit = Releases.commit

    def round_up(self: Releases, lease: Lease, tokens: bytes, num_tokens: int) -> None:
        rounded = num_tokens + self.residency.tree.block_size - 1 if num_tokens else 0
        commit(self, lease, tokens, min(rounded, len(tokens) // 4))

    patch.setattr(Releases, "commit", round_up)


@planted
def committed_before_collected(patch: pytest.MonkeyPatch) -> None:
    def commit(self: MemoryWorld, pick: int) -> None:
        held = self._pick(pick)
        if held is not None and held.lease.is_ready:
            self.manager.commit(held.lease, held.token_bytes, held.launched)

    patch.setattr(MemoryWorld, "commit", commit)


@planted
def anothers_tail_taken_unread(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tails_module, "common_tokens", lambda a, b: min(len(a), len(b)) // 4)


@planted
def parent_leaves_before_its_child(patch: pytest.MonkeyPatch) -> None:
    place = EvictionRanking._place

    def forget_children(self: EvictionRanking, segment: Segment) -> None:
        count, segment.device_children = segment.device_children, 0
        place(self, segment)
        segment.device_children = count

    patch.setattr(EvictionRanking, "_place", forget_children)


@planted
def copy_on_write_skipped(patch: pytest.MonkeyPatch) -> None:
    take_tail = PartialBlocks.take

    def skip(self: PartialBlocks, lease: Lease, found: FoundPartialBlock) -> None:
        take_tail(self, lease, found)
        lease.copies = []

    patch.setattr(PartialBlocks, "take", skip)


@planted
def shared_tail_written_in_place(patch: pytest.MonkeyPatch) -> None:
    def in_place(self: PartialBlocks, lease: Lease, found: FoundPartialBlock) -> None:
        page = found.segment.device[0]
        lease.num_cached = found.num_tokens
        lease.borrowed = found.segment
        if found.moves:  # admission counted on its page
            lease.private.insert(0, page)
        else:
            self._residency.device.free(lease.private[:1])
            lease.private[0] = page

    patch.setattr(PartialBlocks, "take", in_place)


@planted
def bad_step_taken_for_sound(patch: pytest.MonkeyPatch) -> None:
    collect = TagRunner.collect

    def hide(self: TagRunner, step: LaunchedStep) -> StepOutput:
        output = collect(self, step)
        return dataclasses.replace(output, bad=np.zeros_like(output.bad))

    patch.setattr(TagRunner, "collect", hide)


@planted
def completion_lost(patch: pytest.MonkeyPatch) -> None:
    poll = Residency.poll

    def lose(self: Residency) -> list[Transfer]:
        return poll(self)[1:]

    patch.setattr(Residency, "poll", lose)


@planted
def ticket_filtered_out(patch: pytest.MonkeyPatch) -> None:
    submit = Residency._submit

    def forget_one(self: Residency, transfer: Transfer, copies: Any, after: Any) -> None:
        submit(self, transfer, copies, after)
        del self.transfers[max(transfer.tickets)]

    patch.setattr(Residency, "_submit", forget_one)


@planted
def match_one_block_too_long(patch: pytest.MonkeyPatch) -> None:
    common = PrefixTree.common_blocks

    def too_long(self: PrefixTree, segment: Segment, tokens: bytes, start: int, limit: int) -> int:
        return min(common(self, segment, tokens, start, limit) + 1, limit, segment.num_blocks)

    patch.setattr(PrefixTree, "common_blocks", too_long)


@planted
def growth_written_one_column_off(patch: pytest.MonkeyPatch) -> None:
    write = BlockTable.write

    def off(self: BlockTable, row: int, col: int, pages: list[int]) -> None:
        write(self, row, col - (1 if col else 0), pages)

    patch.setattr(BlockTable, "write", off)


@planted
def sharing_domains_mixed(patch: pytest.MonkeyPatch) -> None:
    root = PrefixTree.root
    patch.setattr(PrefixTree, "root", lambda self, domain: root(self, "one for all"))


@planted
def host_copy_dropped_under_a_load(patch: pytest.MonkeyPatch) -> None:
    place = EvictionRanking._place

    def loading_counts(self: EvictionRanking, segment: Segment) -> None:
        place(self, segment)
        if segment.device.transfer is not None and segment.host:
            self._doubled.add(segment, self.use_of(segment))

    patch.setattr(EvictionRanking, "_place", loading_counts)


@planted
def split_forgets_the_copy(patch: pytest.MonkeyPatch) -> None:
    split = PrefixTree.split

    def forget(self: PrefixTree, segment: Segment, count: int) -> Segment:
        upper = split(self, segment, count)
        if upper.device:
            upper.device.transfer = None
        return upper

    patch.setattr(PrefixTree, "split", forget)


@planted
def waiter_of_a_cancelled_load_woken(patch: pytest.MonkeyPatch) -> None:
    poll = LoadWaiters.poll

    def wake(self: LoadWaiters) -> list[Lease]:
        woken = poll(self)
        for lease in woken:
            if lease.failed is not None and lease.failed.error is None:
                lease.failed = None
        return woken

    patch.setattr(LoadWaiters, "poll", wake)


def test_no_bug_is_found_where_none_was_planted() -> None:
    assert steps_until_found() is None


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    PLANTED[name](monkeypatch)
    walks = steps_until_found()
    assert walks is not None, f"{name} was not found in {MAX_WALKS} walks of {STEPS} steps"
    record_property("walks", walks)
