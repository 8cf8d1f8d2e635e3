"""Paged attention of several query tokens a sequence, over pages that hold the KV of these tokens
already.

A program computes one tile of query tokens at aligned absolute positions, times the query heads of
one KV head, over the whole context. There are two forms. The wide form fills tensor cores. The
reproducible form computes for each token exactly what ``paged_decode`` computes: tiles with as many
rows, KV tiles of the same size, and splits merged in the same order. Reference:
``reference.paged_prefill``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .attention_tiles import attend, merge, tile_rows, window_begin
from .contracts import PagedBatch
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

        row = tl.arange(0, ROWS)
        position = tile_begin + row // GROUP_ROWS
        head = row % GROUP_ROWS
        valid = (position >= first_position) & (position < context)
        valid = valid & (head < GROUP) & (row < TOKENS * GROUP_ROWS)
        token = first_token + position - first_position
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


def prefill(
    q: Tensor, pool: Tensor, layer: int, batch: PagedBatch, work: WorkList, scale: float,
    out: Tensor, launch: Launch, rows: int, split: int,
    window: int | None, soft_cap: float | None,
) -> None:  # fmt: skip
    """Write the rows of ``out`` of the sequences that are not decodes. ``split`` 0: the wide form;
    otherwise the ``split`` of the decodes."""
    num_kv_heads, block_size, head_dim = pool.shape[3:]
    group = q.shape[1] // num_kv_heads
    group_rows = next_power_of_2(group)
    prefill_kernel[(work.capacity, num_kv_heads)](
        q, q.stride(0), pool[0, layer], pool.stride(0), pool.stride(3), pool.stride(2),
        batch.block_table, batch.block_table.stride(0),
        batch.seq_rows, batch.query_start, batch.context_lens,
        work.first_item, work.seqs, work.parts, work.num_seqs, scale * LOG2_E, out,
        num_kv_heads, group, group_rows, work.part_size, max(rows, group_rows), head_dim,
        next_power_of_2(head_dim), block_size, split, launch.tile, launch.num_stages,
        window, soft_cap, **launch.options(),
    )  # fmt: skip
