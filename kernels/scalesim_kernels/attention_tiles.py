"""The core of both attention kernels: one tile of query rows over a range of KV positions.

A tile has ``TOKENS * GROUP_ROWS`` rows: some tokens of one sequence, at consecutive positions,
times the query heads that share a KV head (their number rounded up to a power of two). Rows are
independent in every operation here, and a key that a row may not see adds an exact zero, so a
row's bits follow from its own position and from ``BLOCK_N``, not from the rest of its tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .float8_triton import widened


@triton.jit
def attend(
    q,  # [ROWS, BLOCK_D]; zeros in columns past HEAD_DIM
    row_positions,  # [ROWS] int32
    acc,  # [ROWS, BLOCK_D] fp32: sum of p * v so far
    row_max,  # [ROWS] fp32: largest score so far, in units of log2
    row_sum,  # [ROWS] fp32: sum of p so far
    k_head,  # pointer to this layer's K of this KV head in page 0: q's dtype, or e4m3
    table_row,  # pointer to the sequence's row of page ids, int32
    begin,  # first KV position, a multiple of BLOCK_N
    end,  # one past the last KV position; with MASKED=False a multiple of BLOCK_N
    page_stride,  # elements between pages, int64
    v_offset,  # elements from K to V of a head
    scale_log2,  # softmax scale times log2(e)
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
    WINDOW: tl.constexpr,  # how many positions a row sees, or None; with one, MASKED
    SOFT_CAP: tl.constexpr,  # or None
):
    """Online softmax in base 2 (one multiplication less than ``exp``) over ``begin:end``.

    The page ids of a tile are loaded one iteration before the tile: K and V are then direct loads,
    for which Triton keeps several buffers, and not loads through a load, for which Triton keeps
    one."""
    key = tl.arange(0, BLOCK_N)
    # Positions from ``end`` on are garbage, and so are the table entries behind them.
    page = tl.load(table_row + (begin + key) // BLOCK_SIZE, mask=begin + key < end, other=0)
    for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        position = start + key
        ahead = position + BLOCK_N
        next_page = tl.load(table_row + ahead // BLOCK_SIZE, mask=ahead < end, other=0)
        k, v = load_keys(
            k_head, page, position, end, page_stride, v_offset, HEAD_DIM, BLOCK_D, BLOCK_SIZE,
            MASKED,
        )  # fmt: skip
        k, v = widened(k, q.dtype), widened(v, q.dtype)
        acc, row_max, row_sum = absorb(
            q, row_positions, acc, row_max, row_sum, k, v, position, scale_log2, MASKED, WINDOW,
            SOFT_CAP,
        )  # fmt: skip
        page = next_page
    return acc, row_max, row_sum


@triton.jit
def attend_pair(
    q, row_positions, acc, row_max, row_sum,
    more_q, more_positions, more_acc, more_max, more_sum,
    k_head, table_row, begin, end, page_stride, v_offset, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, STAGES: tl.constexpr, WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr,
):  # fmt: skip
    """``attend``, masked, of two tiles that end in the same KV tile: K and V are loaded once for
    both. Each tile has the operations, and so the bits, that it has alone."""
    key = tl.arange(0, BLOCK_N)
    page = tl.load(table_row + (begin + key) // BLOCK_SIZE, mask=begin + key < end, other=0)
    for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        position = start + key
        ahead = position + BLOCK_N
        next_page = tl.load(table_row + ahead // BLOCK_SIZE, mask=ahead < end, other=0)
        k, v = load_keys(
            k_head, page, position, end, page_stride, v_offset, HEAD_DIM, BLOCK_D, BLOCK_SIZE, True
        )
        k, v = widened(k, q.dtype), widened(v, q.dtype)
        acc, row_max, row_sum = absorb(
            q, row_positions, acc, row_max, row_sum, k, v, position, scale_log2, True, WINDOW,
            SOFT_CAP,
        )  # fmt: skip
        more_acc, more_max, more_sum = absorb(
            more_q, more_positions, more_acc, more_max, more_sum, k, v, position, scale_log2, True,
            WINDOW, SOFT_CAP,
        )  # fmt: skip
        page = next_page
    return acc, row_max, row_sum, more_acc, more_max, more_sum


@triton.jit
def load_keys(
    k_head, page, position, end, page_stride, v_offset,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SIZE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """K and V of a tile of positions, ``[BLOCK_N, BLOCK_D]``; zeros from ``end`` on."""
    column = tl.arange(0, BLOCK_D)
    exists = position < end
    slot = page.to(tl.int64) * page_stride + (position % BLOCK_SIZE) * HEAD_DIM
    slot = tl.multiple_of(slot, 16)
    pointers = k_head + slot[:, None] + column[None, :]
    if HEAD_DIM == BLOCK_D:
        inside = exists[:, None]
    else:
        inside = exists[:, None] & (column < HEAD_DIM)[None, :]
    if MASKED or HEAD_DIM != BLOCK_D:
        k = tl.load(pointers, mask=inside, other=0.0)
        v = tl.load(pointers + v_offset, mask=inside, other=0.0)
    else:
        k = tl.load(pointers)
        v = tl.load(pointers + v_offset)
    return k, v


@triton.jit
def absorb(
    q, row_positions, acc, row_max, row_sum, k, v, position, scale_log2,
    MASKED: tl.constexpr, WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr,
):  # fmt: skip
    """A step of the online softmax: the sums so far, and a tile of KV."""
    score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    if SOFT_CAP is not None:
        score = soft_capped(score, SOFT_CAP)
    if MASKED:
        seen = position[None, :] <= row_positions[:, None]
        if WINDOW is not None:
            seen = seen & (position[None, :] > row_positions[:, None] - WINDOW)
        score = tl.where(seen, score, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(score, 1))
    base = finite(new_max, WINDOW)
    p = tl.exp2(score - base[:, None])
    shrink = tl.exp2(row_max - base)
    row_sum = row_sum * shrink + tl.sum(p, 1)
    acc = acc * shrink[:, None]
    acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")
    return acc, new_max, row_sum


@triton.jit
def soft_capped(score, SOFT_CAP: tl.constexpr):
    """``SOFT_CAP * tanh(score / SOFT_CAP)``, both in units of log2."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    grown = tl.exp2(score * (2.0 / SOFT_CAP))  # exp(2 * score / SOFT_CAP), perhaps inf
    return (SOFT_CAP * LOG2_E) * (1.0 - 2.0 / (grown + 1.0))


@triton.jit
def finite(row_max, WINDOW: tl.constexpr):
    """``row_max``, but 0 for rows that have seen nothing yet (which only a window leaves): their
    weights are then ``exp2(-inf)``, an exact zero, where ``-inf - -inf`` would be NaN."""
    return row_max if WINDOW is None else tl.where(row_max == float("-inf"), 0.0, row_max)


@triton.jit
def window_begin(tile_begin, BLOCK_N: tl.constexpr, WINDOW: tl.constexpr):
    """Where rows from this position on start to read: at a multiple of ``BLOCK_N``."""
    return tl.maximum(tile_begin - WINDOW + 1, 0) // BLOCK_N * BLOCK_N


@triton.jit
def merge(acc, row_max, row_sum, more_acc, more_max, more_sum, WINDOW: tl.constexpr):
    """Two partial results of the same rows as one, in this order: the later positions second."""
    new_max = tl.maximum(row_max, more_max)
    base = finite(new_max, WINDOW)
    a, b = tl.exp2(row_max - base), tl.exp2(more_max - base)
    acc = acc * a[:, None] + more_acc * b[:, None]
    return acc, new_max, row_sum * a + more_sum * b


@triton.jit
def tile_rows(
    q,  # pointer to query head 0 of the KV head's group, at token 0 of the step
    tokens,  # [ROWS] int32, the step's token of each row
    heads,  # [ROWS] int32, the row's head within its group
    valid,  # [ROWS], which rows are real
    token_stride,  # elements between tokens
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Pointers ``[ROWS, BLOCK_D]`` and mask of a tile's rows in Q or in the output."""
    column = tl.arange(0, BLOCK_D)
    offset = tokens.to(tl.int64) * token_stride + heads * HEAD_DIM
    pointers = q + tl.multiple_of(offset, 16)[:, None] + column[None, :]
    return pointers, valid[:, None] & (column < HEAD_DIM)[None, :]
