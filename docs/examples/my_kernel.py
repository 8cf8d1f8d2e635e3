"""A paged decode kernel of one's own: one program a (sequence, head), no splits, no tensor cores.

The example of docs/kernels.md. Slow and short on purpose. Check it, then run an engine on it:

    python -m scalesim_kernels check my_kernel:paged_decode --op paged_decode
"""

from __future__ import annotations

import triton
import triton.language as tl

TILE = tl.constexpr(32)


@triton.jit
def decode_kernel(
    q, q_stride,  # [num_tokens, num_heads, HEAD_DIM]
    k_pool, page_stride, head_stride, v_offset,  # the layer's K of page 0; strides in elements
    table, table_stride, seq_rows, context_lens,
    out, scale,
    GROUP: tl.constexpr, NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr,  # or None
):  # fmt: skip
    """Grid ``(num_decodes, NUM_HEADS)``."""
    seq, head = tl.program_id(0), tl.program_id(1)
    row, context = tl.load(seq_rows + seq), tl.load(context_lens + seq)
    d = tl.arange(0, BLOCK_D)
    inside = d < HEAD_DIM
    query = tl.load(q + seq * q_stride + head * HEAD_DIM + d, mask=inside, other=0.0)
    query = query.to(tl.float32)
    acc = tl.zeros([BLOCK_D], tl.float32)
    largest = tl.max(tl.full([1], float("-inf"), tl.float32), 0)
    total = tl.max(tl.zeros([1], tl.float32), 0)
    oldest = 0 if WINDOW is None else tl.maximum(context - WINDOW, 0)
    for start in range(oldest // TILE * TILE, context, TILE):
        position = start + tl.arange(0, TILE)
        exists = position < context  # what follows is garbage, and so are the table's entries
        entry = table + row * table_stride + position // BLOCK_SIZE
        page = tl.load(entry, mask=exists, other=0).to(tl.int64)  # a pool may pass 2**31 elements
        slot = page * page_stride + (head // GROUP) * head_stride
        slot += (position % BLOCK_SIZE) * HEAD_DIM
        pointers = k_pool + slot[:, None] + d[None, :]
        mask = exists[:, None] & inside[None, :]
        k = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
        v = tl.load(pointers + v_offset, mask=mask, other=0.0).to(tl.float32)
        score = tl.sum(k * query[None, :], 1) * scale
        if SOFT_CAP is not None:
            score = SOFT_CAP * (1 - 2 / (tl.exp(score * (2 / SOFT_CAP)) + 1))  # a tanh
        score = tl.where(exists & (position >= oldest), score, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(score, 0))
        p = tl.exp(score - new_largest)
        shrink = tl.exp(largest - new_largest)
        acc = acc * shrink + tl.sum(p[:, None] * v, 0)
        total = total * shrink + tl.sum(p, 0)
        largest = new_largest
    target = out + (seq * NUM_HEADS + head) * HEAD_DIM + d
    if row != 0:
        tl.store(target, (acc / total).to(out.dtype.element_ty), mask=inside)


def paged_decode(  # type: ignore[no-untyped-def]
    q, pool, layer, batch, plan, scale, out, window=None, soft_cap=None
):
    """The contract is ``scalesim_kernels.contracts.PagedAttention``; this needs no plan."""
    num_kv_heads, block_size, head_dim = pool.shape[3:]
    num_heads = q.shape[1]
    decode_kernel[(batch.num_decodes, num_heads)](
        q, q.stride(0), pool[0, layer], pool.stride(0), pool.stride(3), pool.stride(2),
        batch.block_table, batch.block_table.stride(0), batch.seq_rows, batch.context_lens,
        out, scale, num_heads // num_kv_heads, num_heads, head_dim,
        triton.next_power_of_2(head_dim), block_size, window, soft_cap, enable_fp_fusion=False,
    )  # fmt: skip
