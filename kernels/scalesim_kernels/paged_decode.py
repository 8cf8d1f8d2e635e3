"""Paged attention of one query token a sequence: the context is split, and the partial results are
reduced.

As many programs as run at once take (sequence, split, KV head) items from the plan's work list, so
that grids are static, long contexts fill the device at any batch size, and no program is launched
for a split that does not exist. Splits begin at multiples of a fixed size, so the number of
programs changes which program computes an item but not its result. Reference:
``reference.paged_decode``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_tiles import attend, merge, tile_rows, window_begin
from .contracts import PagedBatch
from .float8_triton import readable
from .launch import Launch, next_power_of_2
from .shared_splits import SharedSplits, share
from .work_lists import SMALL, WorkList, build

LOG2_E = 1.4426950408889634
SPLIT = 512  # KV positions of a split; the same everywhere, or texts would depend on it
MIN_ROWS = 16  # the fewest rows of a tensor core's product
BATCH = ["table", *SMALL]  # may be slices of larger arrays, at any alignment
REDUCE = Launch(tile=0, num_warps=2, num_stages=5)


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """The work list of a step's decodes, and scratch memory that all layers share. ``shared`` is
    ``None`` where a tile's rows hold one sequence alone."""

    work: WorkList
    shared: SharedSplits | None
    acc: Tensor  # [capacity, num_heads, head_dim] fp32: unnormalized output of a split
    maxima: Tensor  # [capacity, num_heads] fp32
    sums: Tensor  # [capacity, num_heads] fp32


def scratch_bytes(num_seqs: int, max_positions: int, num_heads: int, head_dim: int) -> int:
    """The size of ``DecodePlan``'s partial results for so many decodes, at full block table
    rows."""
    return 4 * num_seqs * -(-max_positions // SPLIT) * num_heads * (head_dim + 2)


def plan_decode(
    batch: PagedBatch, num_heads: int, num_kv_heads: int, head_dim: int, block_size: int, split: int
) -> DecodePlan | None:
    """The plan of a step's decodes; ``None`` without decodes. The capacity is that of full block
    table rows, at ``4 * head_dim * num_heads`` bytes an item."""
    if batch.num_decodes == 0:
        return None
    longest = batch.block_table.shape[1] * block_size
    capacity = batch.num_decodes * -(-longest // split)
    work = build(batch, 0, batch.num_decodes, split, True, capacity)
    seats = MIN_ROWS // next_power_of_2(num_heads // num_kv_heads)
    shared = share(batch, work, seats, block_size) if seats > 1 else None
    device = batch.seq_rows.device
    acc = torch.empty((capacity, num_heads, head_dim), dtype=torch.float32, device=device)
    maxima, sums = (
        torch.empty((capacity, num_heads), dtype=torch.float32, device=device) for _ in range(2)
    )
    return DecodePlan(work, shared, acc, maxima, sums)


@triton.jit(
    do_not_specialize=["table_stride", "num_seqs"],
    do_not_specialize_on_alignment=[*BATCH, "counts", "members"],
)
def decode_kernel(
    q,  # [num_tokens, num_heads, HEAD_DIM], heads contiguous
    q_stride,
    k_pool,  # K of the layer, KV head 0, page 0
    page_stride, head_stride, v_offset,  # elements
    table, table_stride,  # [num_rows, max_blocks] int32
    seq_rows, context_lens,  # [num_seqs] int32
    first_item, seqs, parts,  # the work list
    counts, members,  # who shares each item, with SEATS > 1
    num_seqs,
    scale_log2,
    acc_parts, max_parts, sum_parts,  # partial results, by item and query head
    out,  # [num_tokens, num_heads, HEAD_DIM], C-contiguous
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr, SEATS: tl.constexpr,
):  # fmt: skip
    """Grid ``(programs,)``; program p takes items p, p + programs, ... of items x KV heads. The
    rows of a tile are the query heads of one sequence, then those of the others that share it."""
    NUM_HEADS: tl.constexpr = GROUP * NUM_KV_HEADS
    row = tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_D)
    seat, head = row // (ROWS // SEATS), row % (ROWS // SEATS)
    num_items = tl.load(first_item + num_seqs) * NUM_KV_HEADS
    for item in tl.range(tl.program_id(0), num_items, tl.num_programs(0)):
        kv_head = item % NUM_KV_HEADS
        entry = item // NUM_KV_HEADS
        seq, part = tl.load(seqs + entry), tl.load(parts + entry)
        count = 1
        if SEATS > 1:
            count = tl.load(counts + entry)
        if count > 0:
            real = (head < GROUP) & (seat < count)
            tokens = row * 0 + seq
            if SEATS > 1:
                tokens = tl.load(members + entry.to(tl.int64) * SEATS + seat, mask=real, other=0)
            begin = part * SPLIT
            context = tl.load(context_lens + seq)
            end = tl.minimum(begin + SPLIT, context)
            if WINDOW is not None:
                begin = tl.maximum(begin, window_begin(context - 1, BLOCK_N, WINDOW))

            q_head = q + kv_head * (GROUP * HEAD_DIM)
            pointers, inside = tile_rows(q_head, tokens, head, real, q_stride, HEAD_DIM, BLOCK_D)
            tile = tl.load(pointers, mask=inside, other=0.0)
            acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
            row_max = tl.full([ROWS], float("-inf"), tl.float32)
            row_sum = tl.zeros([ROWS], tl.float32)
            table_row = table + tl.load(seq_rows + seq).to(tl.int64) * table_stride
            # A shared split ends before any of its sequences does: all see all of it.
            acc, row_max, row_sum = attend(
                tile, row * 0 + (context - 1), acc, row_max, row_sum,
                k_pool + kv_head * head_stride, table_row, begin, end, page_stride, v_offset,
                scale_log2, HEAD_DIM, BLOCK_D, BLOCK_N, BLOCK_SIZE, True, STAGES, WINDOW, SOFT_CAP,
            )  # fmt: skip
            if context <= SPLIT:  # the only split: nothing to reduce
                result = acc / row_sum[:, None]
                out_head = out + kv_head * (GROUP * HEAD_DIM)
                targets, _ = tile_rows(
                    out_head, tokens, head, real, NUM_HEADS * HEAD_DIM, HEAD_DIM, BLOCK_D
                )
                tl.store(targets, result.to(out.dtype.element_ty), mask=inside)
            else:
                own = row * 0 + entry
                if SEATS > 1:  # loaded again: kept, they would take registers in the loop
                    again = members + entry.to(tl.int64) * SEATS + seat
                    tokens = tl.load(again, mask=real, other=0)
                    own = tl.load(first_item + tokens, mask=real, other=0) + part
                place = own.to(tl.int64) * NUM_HEADS + kv_head * GROUP + head
                tl.store(max_parts + place, row_max, mask=real)
                tl.store(sum_parts + place, row_sum, mask=real)
                acc_pointers = acc_parts + place[:, None] * HEAD_DIM + column[None, :]
                tl.store(acc_pointers, acc, mask=inside)


@triton.jit(do_not_specialize_on_alignment=["first_item"])
def reduce_kernel(
    acc_parts, max_parts, sum_parts,  # [capacity, num_heads(, HEAD_DIM)] fp32
    first_item,  # [num_seqs + 1] int32
    out,  # [num_tokens, num_heads, HEAD_DIM]
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
    WINDOW: tl.constexpr,
):  # fmt: skip
    """Grid ``(num_seqs, num_heads)``. Adds splits in the order of their positions; the next ones
    are under way meanwhile."""
    seq, head = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(first_item + seq), tl.load(first_item + seq + 1)
    if end - begin > 1:
        one = tl.arange(0, 1)
        column = tl.arange(0, BLOCK_D)
        inside = (column < HEAD_DIM)[None, :]
        acc = tl.zeros([1, BLOCK_D], tl.float32)
        row_max = tl.full([1], float("-inf"), tl.float32)
        row_sum = tl.zeros([1], tl.float32)
        for item in tl.range(begin, end, num_stages=STAGES):
            index = (one + item).to(tl.int64) * NUM_HEADS + head
            more = tl.load(
                acc_parts + index[:, None] * HEAD_DIM + column[None, :], mask=inside, other=0.0
            )
            more_max, more_sum = tl.load(max_parts + index), tl.load(sum_parts + index)
            acc, row_max, row_sum = merge(acc, row_max, row_sum, more, more_max, more_sum, WINDOW)
        result = acc / row_sum[:, None]
        offset = (seq.to(tl.int64) * NUM_HEADS + head) * HEAD_DIM
        pointers = out + offset + one[:, None] * HEAD_DIM + column[None, :]
        tl.store(pointers, result.to(out.dtype.element_ty), mask=inside)


def decode(
    q: Tensor, pool: Tensor, layer: int, batch: PagedBatch, plan: DecodePlan, scale: float,
    out: Tensor, launch: Launch, programs: int, window: int | None, soft_cap: float | None,
) -> Any:  # fmt: skip
    """Write the rows of ``out`` of the decodes, as ``contracts.PagedAttention`` specifies. ``plan``
    is the plan of ``batch``. Returns the compiled ``decode_kernel``, ``None`` in the
    interpreter."""
    num_kv_heads, block_size, head_dim = pool.shape[3:]
    num_heads = q.shape[1]
    group, block_d = num_heads // num_kv_heads, next_power_of_2(head_dim)
    work = plan.work
    grid = min(programs, work.capacity * num_kv_heads)
    shared = plan.shared if window is None else None  # a window is each sequence's own
    lists = (work.seqs, work.seqs) if shared is None else (shared.counts, shared.members)
    kernel = decode_kernel[(grid,)](
        q, q.stride(0), readable(pool)[0, layer], pool.stride(0), pool.stride(3), pool.stride(2),
        batch.block_table, batch.block_table.stride(0), batch.seq_rows, batch.context_lens,
        work.first_item, work.seqs, work.parts, *lists, work.num_seqs, scale * LOG2_E,
        plan.acc, plan.maxima, plan.sums, out,
        num_kv_heads, group, max(MIN_ROWS, next_power_of_2(group)), head_dim, block_d, block_size,
        work.part_size, launch.tile, launch.num_stages, window, soft_cap,
        1 if shared is None else shared.seats, **launch.options(),
    )  # fmt: skip
    if work.capacity > work.num_seqs:
        reduce_kernel[(work.num_seqs, num_heads)](
            plan.acc,
            plan.maxima,
            plan.sums,
            work.first_item,
            out,
            num_heads,
            head_dim,
            block_d,
            REDUCE.num_stages,
            window,
            **REDUCE.options(),
        )
    return kernel
