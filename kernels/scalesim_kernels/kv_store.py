"""Norm of Q and K, rotation, and the write of K and V to their pages, in one launch a layer.

Reference: ``reference.qk_norm_rope_store``, which rounds to the model's dtype after every step;
here all is fp32 until the store.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .contracts import PagedBatch
from .float8 import as_bytes
from .float8_triton import stored
from .launch import Launch, next_power_of_2

BATCH = ["table", "token_rows", "positions"]  # may be slices, at any alignment
STORE = Launch(tile=8, num_warps=4)


@triton.jit
def normed(first, second, weight, column, inside, eps, HALF: tl.constexpr):
    """RMSNorm of heads held as two halves, ``[HEADS, BLOCK_H]`` fp32 each."""
    square = tl.sum(first * first, 1) + tl.sum(second * second, 1)
    inverse = 1.0 / tl.sqrt_rn(square / (2 * HALF) + eps)
    low = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(weight + HALF + column, mask=inside, other=0.0).to(tl.float32)
    return first * inverse[:, None] * low[None, :], second * inverse[:, None] * high[None, :]


@triton.jit(do_not_specialize=["table_stride"], do_not_specialize_on_alignment=BATCH)
def store_kernel(
    qkv,  # [num_tokens, NUM_HEADS + 2 * NUM_KV_HEADS, 2 * HALF], C-contiguous; Q is overwritten
    pool,  # the layer's K in page 0: qkv's dtype, or e4m3 as bytes
    page_stride, head_stride, v_offset,  # elements
    table, table_stride,  # [num_rows, max_blocks] int32
    token_rows, positions,  # [num_tokens] int32
    cos_sin,  # [max_positions, 2 * HALF]: cosines, then sines
    q_weight, k_weight,  # [2 * HALF], or anything without NORM
    eps,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEADS: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Grid ``(num_tokens, ceil(all heads / HEADS))``: some heads of one token."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, BLOCK_H)
    ALL: tl.constexpr = NUM_HEADS + 2 * NUM_KV_HEADS
    is_q = head < NUM_HEADS
    is_v = (head >= NUM_HEADS + NUM_KV_HEADS) & (head < ALL)
    is_k = (head >= NUM_HEADS) & (head < NUM_HEADS + NUM_KV_HEADS)

    inside = column < HALF
    source = qkv + (token * ALL + head[:, None]) * (2 * HALF) + column[None, :]
    mask = (head < ALL)[:, None] & inside[None, :]
    raw_first = tl.load(source, mask=mask, other=0.0)
    raw_second = tl.load(source + HALF, mask=mask, other=0.0)
    first, second = raw_first.to(tl.float32), raw_second.to(tl.float32)
    if NORM:
        q_first, q_second = normed(first, second, q_weight, column, inside, eps, HALF)
        k_first, k_second = normed(first, second, k_weight, column, inside, eps, HALF)
        first = tl.where(is_q[:, None], q_first, k_first)
        second = tl.where(is_q[:, None], q_second, k_second)

    position = tl.load(positions + token)
    angle = cos_sin + position.to(tl.int64) * (2 * HALF) + column
    cos = tl.load(angle, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(angle + HALF, mask=inside, other=0.0).to(tl.float32)[None, :]
    turned_first = first * cos - second * sin
    turned_second = second * cos + first * sin

    q_mask = is_q[:, None] & inside[None, :]
    tl.store(source, turned_first.to(qkv.dtype.element_ty), mask=q_mask)
    tl.store(source + HALF, turned_second.to(qkv.dtype.element_ty), mask=q_mask)

    row = tl.load(token_rows + token)
    entry = table + row.to(tl.int64) * table_stride + position // BLOCK_SIZE
    page = tl.load(entry, mask=row != 0, other=0).to(tl.int64)
    kv_head = tl.where(is_v, head - NUM_HEADS - NUM_KV_HEADS, head - NUM_HEADS)
    slot = page * page_stride + (position % BLOCK_SIZE) * (2 * HALF)
    slot += tl.where(is_v, v_offset, 0)
    target = pool + (slot + kv_head * head_stride)[:, None] + column[None, :]
    # as a row: Triton 3.9's interpreter makes no mask of a scalar
    is_kept = (is_k | is_v) & (row + 0 * head != 0)
    kv_mask = is_kept[:, None] & inside[None, :]
    v_heads = is_v[:, None]
    low, turned_low = stored(raw_first, pool), stored(turned_first, pool)
    high, turned_high = stored(raw_second, pool), stored(turned_second, pool)
    tl.store(target, tl.where(v_heads, low, turned_low), mask=kv_mask)
    tl.store(target + HALF, tl.where(v_heads, high, turned_high), mask=kv_mask)


def store(
    qkv: Tensor, pool: Tensor, layer: int, batch: PagedBatch, cos_sin: Tensor,
    q_weight: Tensor | None, k_weight: Tensor | None, eps: float,
) -> Tensor:  # fmt: skip
    """As ``contracts.QkNormRopeStore``; the result is a view of ``qkv``."""
    num_kv_heads, block_size, head_dim = pool.shape[3:]
    heads = qkv.view(len(qkv), -1, head_dim)
    num_heads = heads.shape[1] - 2 * num_kv_heads
    norm = q_weight is not None and k_weight is not None
    grid = (len(qkv), -(-heads.shape[1] // STORE.tile))
    store_kernel[grid](
        qkv, as_bytes(pool)[0, layer], pool.stride(0), pool.stride(3), pool.stride(2),
        batch.block_table, batch.block_table.stride(0), batch.token_rows, batch.positions,
        cos_sin, q_weight if norm else qkv, k_weight if norm else qkv, eps,
        num_heads, num_kv_heads, head_dim // 2, next_power_of_2(head_dim // 2), block_size,
        STORE.tile, norm, **STORE.options(),
    )  # fmt: skip
    return heads[:, :num_heads]
