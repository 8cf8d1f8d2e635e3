"""Splits that several decodes share: one item of work, whose KV is loaded once for all of them.

Agents of one world begin with the same prefix, and have the same pages at the same places of their
block table rows. What a split adds to a decode is merged by log-sum-exp in the order of positions,
shared or not; and a row's bits do not depend on the other rows of its tile. So sharing changes no
bit. (The idea: Juravsky et al., "Hydragen", 2024; Ye et al., "FlashInfer", 2025: cascades.)

The lists take one launch a step, and no value is read back to the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .contracts import PagedBatch
from .launch import Launch
from .work_lists import WorkList

SHARE = Launch(tile=128, num_warps=1)
SMALL = ["table", "seq_rows", "context_lens", "first_item", "counts", "members"]


@dataclass(frozen=True, slots=True)
class SharedSplits:
    """For each item of a work list: how many sequences its program computes, and which. A sequence
    of an item with none is computed with another item."""

    counts: Tensor  # [capacity] int32
    members: Tensor  # [capacity, seats] int32; entries past the count are arbitrary

    @property
    def seats(self) -> int:
        """The most sequences of an item."""
        return self.members.shape[1]


@triton.jit
def sharers(
    table, table_stride, seq_rows, context_lens, seq, num_seqs, page, end, last,
):  # fmt: skip
    """Which of the sequences ``seq`` have ``page`` at block ``last``, and more behind ``end``."""
    row = tl.load(seq_rows + seq, mask=seq < num_seqs, other=0)
    context = tl.load(context_lens + seq, mask=seq < num_seqs, other=0)
    there = (row != 0) & (context > end)
    entry = table + row.to(tl.int64) * table_stride + last
    return there & (tl.load(entry, mask=there, other=-1) == page)


@triton.jit(do_not_specialize=["table_stride", "num_seqs"], do_not_specialize_on_alignment=SMALL)
def share_kernel(
    table, table_stride,  # [num_rows, max_blocks] int32
    seq_rows, context_lens, first_item,  # [num_seqs] int32 (first_item: + 1)
    counts, members,  # outputs
    num_seqs,
    SPLIT: tl.constexpr, BLOCK_SIZE: tl.constexpr, SEATS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid ``(num_seqs, splits of a full row)``: a program writes where its sequence's split is
    computed. Sequences take seats in their order, and the first of an item leads.

    Equal last pages are enough: a page holds what follows from all tokens before its end. A
    sequence's last split is its own: others may write behind it."""
    own, part = tl.program_id(0), tl.program_id(1)
    row, context = tl.load(seq_rows + own), tl.load(context_lens + own)
    if (row != 0) & (part * SPLIT < context):
        end = (part + 1) * SPLIT
        last = end // BLOCK_SIZE - 1
        entry = table + row.to(tl.int64) * table_stride + last
        page = tl.load(entry, mask=end < context, other=-2)
        before, behind = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
        for first in range(0, num_seqs, BLOCK):
            seq = first + tl.arange(0, BLOCK)
            same = sharers(
                table, table_stride, seq_rows, context_lens, seq, num_seqs, page, end, last
            )
            before += (same & (seq < own)).to(tl.int32)
            behind += (same & (seq > own)).to(tl.int32)
        num_before = tl.sum(before, 0)
        seat = num_before % SEATS
        item = tl.load(first_item + own) + part
        leader = own
        if seat == 0:
            tl.store(counts + item, 1 + tl.minimum(tl.sum(behind, 0), SEATS - 1))
        else:
            tl.store(counts + item, 0)
            seen, found = 0, tl.zeros([BLOCK], tl.int32)
            for first in range(0, own, BLOCK):
                seq = first + tl.arange(0, BLOCK)
                same = sharers(
                    table, table_stride, seq_rows, context_lens, seq, num_seqs, page, end, last
                ).to(tl.int32)
                place = seen + tl.cumsum(same, 0) - same
                leads = (same == 1) & (place == num_before - seat)
                found += tl.where(leads, seq, 0)
                seen += tl.sum(same, 0)
            leader = tl.sum(found, 0)
        led = (tl.load(first_item + leader) + part).to(tl.int64)
        tl.store(members + led * SEATS + seat, own)


def share(batch: PagedBatch, work: WorkList, seats: int, block_size: int) -> SharedSplits:
    """Of the decodes, whose work list is ``work``: ``seats`` sequences an item at most."""
    device, splits = batch.seq_rows.device, work.capacity // work.num_seqs
    counts = torch.empty(work.capacity, dtype=torch.int32, device=device)
    members = torch.empty((work.capacity, seats), dtype=torch.int32, device=device)
    share_kernel[(work.num_seqs, splits)](
        batch.block_table, batch.block_table.stride(0), batch.seq_rows, batch.context_lens,
        work.first_item, counts, members, work.num_seqs, work.part_size, block_size, seats,
        SHARE.tile, **SHARE.options(),
    )  # fmt: skip
    return SharedSplits(counts, members)
