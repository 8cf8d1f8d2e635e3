"""Paged attention of several query tokens a sequence, over pages that hold the KV of these tokens
already.

A program computes one tile of query tokens at aligned absolute positions, times the query heads of
one KV head, over the whole context. There are two forms. The wide form fills tensor cores. The
reproducible form computes for each token exactly what ``paged_decode`` computes: tiles with as many
rows, KV tiles of the same size, and splits merged in the same order. Where there are programs
enough, one computes two such tiles, which share each load of K and V. Reference:
``reference.paged_prefill``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .attention_tiles import attend, attend_pair, merge, tile_rows, window_begin
from .contracts import PagedBatch
from .float8_triton import readable
from .launch import Launch, next_power_of_2
from .paged_decode import BATCH, LOG2_E
from .work_lists import WorkList, build


def tile_tokens(num_heads: int, num_kv_heads: int, rows: int) -> int:
    """The number of tokens in a tile of ``rows`` rows, at least one."""
    return max(1, rows // next_power_of_2(num_heads // num_kv_heads))


def plan_prefill(batch: PagedBatch, tokens_per_tile: int) -> WorkList | None:
    """The work list of the sequences that are not decodes; ``None`` without such sequences."""
    first, num_seqs = batch.num_decodes, len(batch.seq_rows) - batch.num_decodes
    if num_seqs == 0:
        return None
    num_tokens = len(batch.positions) - first
    # A run of n tokens touches at most n // T + 2 tiles of T, and never more than n.
    capacity = min(num_tokens, num_tokens // tokens_per_tile + 2 * num_seqs)
    return build(batch, first, num_seqs, tokens_per_tile, False, capacity)


@triton.jit
def rows_of(
    tile_begin, first_token, first_position, context,
    GROUP: tl.constexpr, GROUP_ROWS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """(position, token of the step, head in its group, whether it is real) of each row of a
    tile."""
    row = tl.arange(0, ROWS)
    position = tile_begin + row // GROUP_ROWS
    head = row % GROUP_ROWS
    valid = (position >= first_position) & (position < context)
    valid = valid & (head < GROUP) & (row < TOKENS * GROUP_ROWS)
    return position, first_token + position - first_position, head, valid


@triton.jit(do_not_specialize=["table_stride", "num_seqs"], do_not_specialize_on_alignment=BATCH)
def prefill_kernel(
    q,  # [num_tokens, num_heads, HEAD_DIM], heads contiguous
    q_stride,
    k_pool,  # K of the layer, KV head 0, page 0
    page_stride, head_stride, v_offset,  # elements
    table, table_stride,  # [num_rows, max_blocks] int32
    seq_rows, query_start, context_lens,  # [num_seqs] int32 (query_start: + 1)
    first_item, seqs, parts,  # the work list
    num_seqs,
    scale_log2,
    out,  # [num_tokens, num_heads, HEAD_DIM], C-contiguous
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_ROWS: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, SPLIT: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr,
):  # fmt: skip
    """Grid ``(capacity, NUM_KV_HEADS)``. ``SPLIT`` 0: the wide form. The last entries of the work
    list start first: a sequence's last tiles see the longest contexts."""
    entry, kv_head = tl.load(first_item + num_seqs) - 1 - tl.program_id(0), tl.program_id(1)
    if entry >= 0:
        seq = tl.load(seqs + entry)
        tile_begin = tl.load(parts + entry) * TOKENS
        context = tl.load(context_lens + seq)
        first_token = tl.load(query_start + seq)
        first_position = context - (tl.load(query_start + seq + 1) - first_token)

        position, token, head, valid = rows_of(
            tile_begin, first_token, first_position, context, GROUP, GROUP_ROWS, TOKENS, ROWS
        )
        q_head = q + kv_head * (GROUP * HEAD_DIM)
        pointers, inside = tile_rows(q_head, token, head, valid, q_stride, HEAD_DIM, BLOCK_D)
        tile = tl.load(pointers, mask=inside, other=0.0)

        end = tl.minimum(tile_begin + TOKENS, context)
        acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
        row_max = tl.full([ROWS], float("-inf"), tl.float32)
        row_sum = tl.zeros([ROWS], tl.float32)
        table_row = table + tl.load(seq_rows + seq).to(tl.int64) * table_stride
        k_head = k_pool + kv_head * head_stride
        start = 0
        if WINDOW is not None:
            start = window_begin(tile_begin, BLOCK_N, WINDOW)
        if SPLIT == 0:
            if WINDOW is None:  # KV that every row sees: no masks
                whole = tile_begin // BLOCK_N * BLOCK_N
                acc, row_max, row_sum = attend(
                    tile, position, acc, row_max, row_sum, k_head, table_row, 0, whole,
                    page_stride, v_offset, scale_log2, HEAD_DIM, BLOCK_D, BLOCK_N, BLOCK_SIZE,
                    False, STAGES, WINDOW, SOFT_CAP,
                )  # fmt: skip
                start = whole
            acc, row_max, row_sum = attend(
                tile, position, acc, row_max, row_sum, k_head, table_row, start, end, page_stride,
                v_offset, scale_log2, HEAD_DIM, BLOCK_D, BLOCK_N, BLOCK_SIZE, True, STAGES,
                WINDOW, SOFT_CAP,
            )  # fmt: skip
        else:
            for begin in tl.range(start // SPLIT * SPLIT, end, SPLIT):
                first = begin if WINDOW is None else tl.maximum(begin, start)
                more_acc, more_max, more_sum = attend(
                    tile, position, tl.zeros([ROWS, BLOCK_D], tl.float32),
                    tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32),
                    k_head, table_row, first, tl.minimum(begin + SPLIT, end), page_stride,
                    v_offset, scale_log2, HEAD_DIM, BLOCK_D, BLOCK_N, BLOCK_SIZE,
                    True, STAGES, WINDOW, SOFT_CAP,
                )  # fmt: skip
                acc, row_max, row_sum = merge(
                    acc, row_max, row_sum, more_acc, more_max, more_sum, WINDOW
                )

        result = acc / row_sum[:, None]
        out_head = out + kv_head * (GROUP * HEAD_DIM)
        out_stride: tl.constexpr = GROUP * NUM_KV_HEADS * HEAD_DIM
        pointers, inside = tile_rows(out_head, token, head, valid, out_stride, HEAD_DIM, BLOCK_D)
        tl.store(pointers, result.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["table_stride", "num_seqs"], do_not_specialize_on_alignment=BATCH)
def prefill_pair_kernel(
    q, q_stride, k_pool, page_stride, head_stride, v_offset, table, table_stride,
    seq_rows, query_start, context_lens, first_item, seqs, parts, num_seqs, scale_log2,
    out,  # all as in prefill_kernel
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_ROWS: tl.constexpr,
    PAIR_TOKENS: tl.constexpr, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, SPLIT: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr,
):  # fmt: skip
    """The reproducible form for two tiles of ``PAIR_TOKENS / 2`` tokens, one behind the other. A
    pair lies within one KV tile, since ``PAIR_TOKENS`` divides ``BLOCK_N``."""
    entry, kv_head = tl.load(first_item + num_seqs) - 1 - tl.program_id(0), tl.program_id(1)
    if entry >= 0:
        TOKENS: tl.constexpr = PAIR_TOKENS // 2
        seq = tl.load(seqs + entry)
        begin = tl.load(parts + entry) * PAIR_TOKENS
        context = tl.load(context_lens + seq)
        first_token = tl.load(query_start + seq)
        first_position = context - (tl.load(query_start + seq + 1) - first_token)

        q_head = q + kv_head * (GROUP * HEAD_DIM)
        position_a, token_a, head_a, valid_a = rows_of(
            begin, first_token, first_position, context, GROUP, GROUP_ROWS, TOKENS, ROWS
        )
        at_a, in_a = tile_rows(q_head, token_a, head_a, valid_a, q_stride, HEAD_DIM, BLOCK_D)
        tile_a = tl.load(at_a, mask=in_a, other=0.0)
        position_b, token_b, head_b, valid_b = rows_of(
            begin + TOKENS, first_token, first_position, context, GROUP, GROUP_ROWS, TOKENS, ROWS
        )
        at_b, in_b = tile_rows(q_head, token_b, head_b, valid_b, q_stride, HEAD_DIM, BLOCK_D)
        tile_b = tl.load(at_b, mask=in_b, other=0.0)

        end = tl.minimum(begin + PAIR_TOKENS, context)
        zeros, none = tl.zeros([ROWS, BLOCK_D], tl.float32), tl.zeros([ROWS], tl.float32)
        lowest = tl.full([ROWS], float("-inf"), tl.float32)
        acc_a, max_a, sum_a, acc_b, max_b, sum_b = zeros, lowest, none, zeros, lowest, none
        table_row = table + tl.load(seq_rows + seq).to(tl.int64) * table_stride
        k_head = k_pool + kv_head * head_stride
        start = 0
        if WINDOW is not None:
            start = window_begin(begin, BLOCK_N, WINDOW)
        for split in tl.range(start // SPLIT * SPLIT, end, SPLIT):
            first = split if WINDOW is None else tl.maximum(split, start)
            part_a, more_max_a, more_sum_a, part_b, more_max_b, more_sum_b = attend_pair(
                tile_a, position_a, zeros, lowest, none, tile_b, position_b, zeros, lowest, none,
                k_head, table_row, first, tl.minimum(split + SPLIT, end), page_stride, v_offset,
                scale_log2, HEAD_DIM, BLOCK_D, BLOCK_N, BLOCK_SIZE, STAGES, WINDOW, SOFT_CAP,
            )  # fmt: skip
            acc_a, max_a, sum_a = merge(acc_a, max_a, sum_a, part_a, more_max_a, more_sum_a, WINDOW)
            acc_b, max_b, sum_b = merge(acc_b, max_b, sum_b, part_b, more_max_b, more_sum_b, WINDOW)

        out_head = out + kv_head * (GROUP * HEAD_DIM)
        out_stride: tl.constexpr = GROUP * NUM_KV_HEADS * HEAD_DIM
        to_a, in_a = tile_rows(out_head, token_a, head_a, valid_a, out_stride, HEAD_DIM, BLOCK_D)
        tl.store(to_a, (acc_a / sum_a[:, None]).to(out.dtype.element_ty), mask=in_a)
        to_b, in_b = tile_rows(out_head, token_b, head_b, valid_b, out_stride, HEAD_DIM, BLOCK_D)
        tl.store(to_b, (acc_b / sum_b[:, None]).to(out.dtype.element_ty), mask=in_b)


def prefill(
    q: Tensor, pool: Tensor, layer: int, batch: PagedBatch, work: WorkList, scale: float,
    out: Tensor, launch: Launch, rows: int, split: int, paired: bool,
    window: int | None, soft_cap: float | None,
) -> None:  # fmt: skip
    """Write the rows of ``out`` of the sequences that are not decodes. ``split`` 0: the wide form;
    otherwise the ``split`` of the decodes. ``paired``: the parts of ``work`` are two tiles each."""
    num_kv_heads, block_size, head_dim = pool.shape[3:]
    group = q.shape[1] // num_kv_heads
    group_rows = next_power_of_2(group)
    kernel = prefill_pair_kernel if paired else prefill_kernel
    kernel[(work.capacity, num_kv_heads)](
        q, q.stride(0), readable(pool)[0, layer], pool.stride(0), pool.stride(3), pool.stride(2),
        batch.block_table, batch.block_table.stride(0),
        batch.seq_rows, batch.query_start, batch.context_lens,
        work.first_item, work.seqs, work.parts, work.num_seqs, scale * LOG2_E, out,
        num_kv_heads, group, group_rows, work.part_size, max(rows, group_rows), head_dim,
        next_power_of_2(head_dim), block_size, split, launch.tile, launch.num_stages,
        window, soft_cap, **launch.options(),
    )  # fmt: skip
