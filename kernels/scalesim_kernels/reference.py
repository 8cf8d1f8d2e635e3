"""Every op in plain PyTorch: the specification that fast kernels are tested against.

Loops over sequences and heads on purpose: obvious first, speed never. Accumulates in fp32 at least.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .contracts import RULED_OUT, Adjustments, KernelSet, LoraBatch, LoraSite, PagedBatch
from .float8 import as_bytes, narrowed
from .philox import uniform


def widen(x: Tensor) -> Tensor:
    """At least fp32. Called with fp64, the specification is exact enough to judge fp32 by."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    total = x if residual is None else x + residual
    wide = widen(total)
    normed = wide / torch.sqrt((wide * wide).mean(-1, keepdim=True) + eps)
    if weight.dtype == x.dtype:
        normed = normed.to(x.dtype)
    return (normed * weight).to(x.dtype), total


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Turn ``[tokens, heads, head_dim]`` by ``[tokens, head_dim]``: cosines, then sines."""
    cos, sin = cos_sin[:, None].chunk(2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def qk_norm_rope_store(
    qkv: Tensor,
    pool: Tensor,
    layer: int,
    batch: PagedBatch,
    plan: Any,
    cos_sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
) -> Tensor:
    _, _, _, num_kv_heads, block_size, head_dim = pool.shape
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    num_heads = heads.shape[1] - 2 * num_kv_heads
    q, k, v = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=1)
    if q_weight is not None and k_weight is not None:
        q, k = rms_norm(q, q_weight, eps)[0], rms_norm(k, k_weight, eps)[0]
    angles = cos_sin[batch.positions.long()]
    q, k = rotate(q, angles), rotate(k, angles)
    for token, (row, position) in enumerate(
        zip(batch.token_rows.tolist(), batch.positions.tolist(), strict=True)
    ):
        if row != 0:
            page = int(batch.block_table[row, position // block_size])
            pool[page, layer, 0, :, position % block_size] = narrowed(k[token], pool.dtype)
            pool[page, layer, 1, :, position % block_size] = narrowed(v[token], pool.dtype)
    return q


def gather_kv(
    pool: Tensor, layer: int, table_row: Tensor, context_len: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The valid K and V of one sequence: two ``[num_kv_heads, context_len, head_dim]`` of
    ``dtype``."""
    block_size = pool.shape[4]
    pages = table_row[: -(-context_len // block_size)].long()
    found = as_bytes(pool)[pages, layer].view(pool.dtype)
    kv = found.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :context_len].to(dtype)
    return kv[0], kv[1]


def attend_sequence(
    seq: int, q: Tensor, pool: Tensor, layer: int, batch: PagedBatch, scale: float, out: Tensor,
    window: int | None, soft_cap: float | None,
) -> None:  # fmt: skip
    row, context_len = int(batch.seq_rows[seq]), int(batch.context_lens[seq])
    if row == 0:
        return
    wide = widen(q).dtype
    keys, values = gather_kv(pool, layer, batch.block_table[row], context_len, wide)
    group = q.shape[1] // keys.shape[0]
    for token in range(int(batch.query_start[seq]), int(batch.query_start[seq + 1])):
        end = int(batch.positions[token]) + 1
        visible = slice(0 if window is None else max(0, end - window), end)
        for head in range(q.shape[1]):
            scores = keys[head // group, visible] @ widen(q[token, head]) * scale
            if soft_cap is not None:
                scores = soft_cap * torch.tanh(scores / soft_cap)
            mixed = torch.softmax(scores, dim=-1) @ values[head // group, visible]
            out[token, head] = mixed.to(out.dtype)


def paged_decode(
    q: Tensor, pool: Tensor, layer: int, batch: PagedBatch, plan: Any, scale: float, out: Tensor,
    window: int | None = None, soft_cap: float | None = None,
) -> None:  # fmt: skip
    for seq in range(batch.num_decodes):
        attend_sequence(seq, q, pool, layer, batch, scale, out, window, soft_cap)


def paged_prefill(
    q: Tensor, pool: Tensor, layer: int, batch: PagedBatch, plan: Any, scale: float, out: Tensor,
    window: int | None = None, soft_cap: float | None = None,
) -> None:  # fmt: skip
    for seq in range(batch.num_decodes, len(batch.seq_rows)):
        attend_sequence(seq, q, pool, layer, batch, scale, out, window, soft_cap)


def plan(
    batch: PagedBatch, pool: Tensor, num_heads: int, reproducible: bool,
    dtype: torch.dtype | None = None,
) -> None:  # fmt: skip
    return None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Row by row, so that rows are independent by construction."""
    rows = [widen(weight) @ widen(row) for row in x]
    wide = torch.stack(rows) if rows else widen(x.new_zeros((0, weight.shape[0])))
    return (wide if bias is None else wide + widen(bias)).to(x.dtype)


def rank_row(pool: Tensor, table_row: Tensor, offset: int, width: int) -> Tensor:
    """``width`` elements of an adapter from element ``offset`` on."""
    page_elems = pool.stride(0)
    pages = pool.as_strided((len(pool), page_elems), (page_elems, 1))
    start = offset % page_elems
    return widen(pages[int(table_row[offset // page_elems]), start : start + width])


def lora_shrink(x: Tensor, pool: Tensor, layer: int, site: LoraSite, lora: LoraBatch) -> Tensor:
    directory = lora.directory
    max_rank = directory.a_offsets.shape[3]
    shape = (len(lora.tokens), site.num_slices, max_rank)
    h = torch.zeros(shape, dtype=widen(x).dtype)
    for group, (row, layout) in enumerate(
        zip(lora.rows.tolist(), lora.layouts.tolist(), strict=True)
    ):
        for i in range(site.num_slices if row else 0):
            where = (layout, layer, site.first_slice + i)
            for j, offset in enumerate(directory.a_offsets[where][: directory.ranks[where]]):
                a = rank_row(pool, lora.block_table[row], int(offset), site.in_width)
                start = int(lora.starts[group])
                for entry in range(start, start + int(lora.counts[group])):
                    token = widen(x[int(lora.tokens[entry])])
                    h[entry, i, j] = directory.scales[where] * (a @ token)
    return h


def lora_expand(
    h: Tensor, pool: Tensor, layer: int, site: LoraSite, lora: LoraBatch, out: Tensor
) -> None:
    directory = lora.directory
    for group, (row, layout) in enumerate(
        zip(lora.rows.tolist(), lora.layouts.tolist(), strict=True)
    ):
        first = 0
        for i, width in enumerate(site.out_widths if row else ()):
            where = (layout, layer, site.first_slice + i)
            offsets = directory.b_offsets[where][: directory.ranks[where]].tolist()
            b = [rank_row(pool, lora.block_table[row], offset, width) for offset in offsets]
            start = int(lora.starts[group])
            for entry in range(start, start + int(lora.counts[group]) if b else start):
                token = out[int(lora.tokens[entry]), first : first + width]
                token.copy_(widen(token) + h[entry, i, : len(b)].to(b[0].dtype) @ torch.stack(b))
            first += width


def silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return gate / (1 + torch.exp(-gate)) * up


def gelu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    return gate / 2 * (1 + torch.tanh(inner)) * up


def copy_pages(pool: Tensor, src: Tensor, dst: Tensor) -> None:
    for source, destination in zip(src.tolist(), dst.tolist(), strict=True):
        pool[destination].copy_(pool[source])


def zero_pages(pool: Tensor, ids: Tensor) -> None:
    for page in ids.tolist():
        pool[page].zero_()


def keep_most_probable(probabilities: Tensor, top_k: int, top_p: float) -> Tensor:
    """``probabilities`` (``[vocab]``) with zeros where ``top_k`` and ``top_p`` cut."""
    order = torch.argsort(probabilities, descending=True, stable=True)
    if top_k > 0:
        order = order[:top_k]
    if top_p < 1:
        mass = torch.cumsum(probabilities[order].double(), 0)
        num_kept = int((mass < top_p * mass[-1]).sum()) + 1
        order = order[:num_kept]
    kept = torch.zeros_like(probabilities)
    kept[order] = probabilities[order]
    return kept


def sample_row(logits: Tensor, temperature: float, top_k: int, top_p: float, u: float) -> int:
    if not bool(torch.isfinite(logits).all()):
        return -1
    if temperature == 0:
        return int((logits == logits.max()).nonzero()[0])
    kept = keep_most_probable(torch.exp((logits - logits.max()) / temperature), top_k, top_p)
    mass = torch.cumsum(kept.double(), 0)
    return int((mass > u * mass[-1]).nonzero()[0])


def sample(
    logits: Tensor,
    temperatures: Tensor,
    top_ks: Tensor,
    top_ps: Tensor,
    keys: Tensor,
    positions: Tensor,
) -> Tensor:
    draws = uniform(keys.numpy(), positions.numpy())
    columns = (temperatures.tolist(), top_ks.tolist(), top_ps.tolist(), draws.tolist())
    tokens = [sample_row(row, *args) for row, *args in zip(logits, *columns, strict=True)]
    return torch.tensor(tokens, dtype=torch.int32)


def adjust_row(row: Tensor, i: int, changes: Adjustments) -> Tensor:
    first, last = changes.bias_start[i : i + 2].tolist()
    ids = changes.bias_ids[first:last].long()
    row = row.index_add(0, ids, changes.biases[first:last].to(row.dtype))
    penalties = (changes.repetitions[i], changes.frequencies[i], changes.presences[i])
    if [float(penalty) for penalty in penalties] != [1, 0, 0]:
        counts = changes.counts[int(changes.slots[i])]
        repetition, frequency, presence = penalties
        times = counts >> 1
        penalized = torch.where(row < 0, row * repetition, row / repetition)
        row = torch.where(counts > 0, penalized, row)
        row = row - times * frequency
        row = row - (times > 0) * presence
    row = row.clamp(min=RULED_OUT)
    if changes.mask_rows[i] >= 0:
        words = changes.masks[int(changes.mask_rows[i])]
        allowed = (words[:, None] >> torch.arange(32, dtype=torch.int32)) & 1
        row = torch.where(allowed.flatten()[: len(row)] == 1, row, RULED_OUT)
    if changes.min_ps[i] > 0 and changes.temperatures[i] > 0:
        weights = torch.exp((row - row.max()) / changes.temperatures[i])
        row = torch.where(weights < changes.min_ps[i], RULED_OUT, row)
    return row


def adjust_logits(logits: Tensor, changes: Adjustments) -> Tensor:
    rows = [adjust_row(logits[row], i, changes) for i, row in enumerate(changes.rows.tolist())]
    return torch.stack(rows) if rows else logits[:0].clone()


def log_probs(logits: Tensor, targets: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    scores = torch.log_softmax(logits.double(), -1)
    order = torch.argsort(logits, descending=True, stable=True)[:, :top_k]
    chosen = scores.gather(1, targets.long()[:, None])[:, 0]
    return chosen.to(logits.dtype), order.int(), scores.gather(1, order).to(logits.dtype)


def reference_kernels() -> KernelSet:
    return KernelSet(
        name="reference",
        row_multiple=1,
        rms_norm=rms_norm,
        qk_norm_rope_store=qk_norm_rope_store,
        plan=plan,
        paged_decode=paged_decode,
        paged_prefill=paged_prefill,
        pack_weight=lambda weight: weight,
        linear=linear,
        lora_shrink=lora_shrink,
        lora_expand=lora_expand,
        silu_mul=silu_mul,
        gelu_mul=gelu_mul,
        copy_pages=copy_pages,
        zero_pages=zero_pages,
        sample=sample,
        log_probs=log_probs,
        adjust_logits=adjust_logits,
    )
