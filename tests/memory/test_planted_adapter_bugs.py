"""Bugs of adapters, planted one at a time, as in ``test_planted_bugs``; each must be found."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from scalesim.core import Fence
from scalesim.memory.eviction.ranking import EvictionRanking
from scalesim.memory.eviction.residency import Residency
from scalesim.memory.lease import AttachmentUse
from scalesim.memory.leases.attachments import Attachments
from scalesim.memory.links.link import Copies
from scalesim.memory.tree.segment import Branch, Segment, Transfer
from scalesim.testing.memory_walk import MemoryWalk
from scalesim.testing.memory_world import WorldShape
from scalesim.testing.walks import failure_of

Patch = Callable[[pytest.MonkeyPatch], None]
STEPS, MAX_WALKS = 200, 40
PLANTED: dict[str, Patch] = {}


def walks_until_found() -> int | None:
    for seed in range(MAX_WALKS):
        pages, block_size = ((16, 4), (9, 2), (24, 2))[seed % 3]
        host = (1.0, 0.0)[seed % 2]
        shape = WorldShape(pages, host, block_size, "deadline", seed, adapters=3)
        if failure_of(MemoryWalk(shape, seed, STEPS)) is not None:
            return seed + 1
    return None


def planted(patch: Patch) -> Patch:
    PLANTED[patch.__name__] = patch
    return patch


@planted
def one_key_for_all_adapters(patch: pytest.MonkeyPatch) -> None:
    def same(self: AttachmentUse, block_size: int) -> Branch:
        block, offset = divmod(self.start, block_size)
        return Branch(block, bytes(16) + offset.to_bytes(2, "little"))

    patch.setattr(AttachmentUse, "branch", same)


@planted
def place_in_the_block_left_out_of_the_key(patch: pytest.MonkeyPatch) -> None:
    def rough(self: AttachmentUse, block_size: int) -> Branch:
        return Branch(self.start // block_size, self.digest + bytes(2))

    patch.setattr(AttachmentUse, "branch", rough)


@planted
def activated_kv_kept_as_the_bases(patch: pytest.MonkeyPatch) -> None:
    branch = AttachmentUse.branch

    def late(self: AttachmentUse, block_size: int) -> Branch:
        found = branch(self, block_size)
        return found if self.start == 0 else Branch(1 << 20, found.mark)

    patch.setattr(AttachmentUse, "branch", late)


@planted
def in_use_and_still_evictable(patch: pytest.MonkeyPatch) -> None:
    pin = EvictionRanking.pin
    patch.setattr(
        EvictionRanking, "pin", lambda self, segment: segment.is_attachment or pin(self, segment)
    )


@planted
def row_freed_by_the_first_to_leave(patch: pytest.MonkeyPatch) -> None:
    def let_go(self: Attachments, segment: Segment) -> None:
        row, count = self._rows.pop(segment)
        self._rows[segment] = (row, count - 1)
        self._table.free(row)

    patch.setattr(Attachments, "let_go", let_go)


@planted
def removed_while_in_use(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Residency, "_held", lambda self, segment: segment.is_attachment and False)


@planted
def read_from_the_start_into_the_middle(patch: pytest.MonkeyPatch) -> None:
    submit = Residency._submit

    def whole(self: Residency, transfer: Transfer, copies: Copies, after: Fence | None) -> None:
        if copies.source is not None:
            copies = Copies(
                copies.direction, copies.device_pages, copies.host_pages, copies.source, 0
            )
        submit(self, transfer, copies, after)

    patch.setattr(Residency, "_submit", whole)


@planted
def failed_read_taken_for_done(patch: pytest.MonkeyPatch) -> None:
    finish = Residency._finish

    def done(self: Residency, transfer: Transfer) -> None:
        if transfer.tier == "device" and transfer.parts[0][0].is_attachment:
            transfer.error = None
        finish(self, transfer)

    patch.setattr(Residency, "_finish", done)


def test_no_bug_is_found_where_none_was_planted() -> None:
    assert walks_until_found() is None


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTED[name](monkeypatch)
    assert walks_until_found() is not None, f"{name} was not found in {MAX_WALKS} walks"
