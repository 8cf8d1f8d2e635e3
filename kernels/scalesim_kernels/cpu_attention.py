"""Paged attention and KV store of the CPU set: gathers pages into a small buffer, calls SDPA.

``CpuAttention`` owns the scratch memory: large fresh allocations page-fault on every step
(measured: 28 ms against 2.3 ms for the same 38 MB gather). For one thread at a time.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .contracts import PagedBatch
from .cpu_tiles import (
    BUCKET,
    Gather,
    Sequences,
    TilePlan,
    TileShape,
    bucket_end,
    causal_mask,
    decode_tiles,
    prefill_tiles,
)


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """A step's indices. ``store_index`` is ``[valid tokens, 2 * kv_heads]`` head rows."""

    store_index: Tensor
    decode: TilePlan | None
    prefill: TilePlan | None


class CpuAttention:
    """``plan``, ``store``, ``paged_decode`` and ``paged_prefill``, sharing scratch buffers."""

    def __init__(self) -> None:
        self._scratch: dict[str, Tensor] = {}
        self._masks: dict[tuple[TileShape, torch.dtype], Tensor] = {}
        self._agree: dict[tuple[int, int, torch.dtype], bool] = {}

    def plan(self, batch: PagedBatch, pool: Tensor, num_heads: int, reproducible: bool) -> CpuPlan:
        group = num_heads // pool.shape[3]
        decodes, prefills = split_sequences(batch)
        decode = prefill = None
        if len(decodes.rows):
            shape = self._decode_shape(group, reproducible, pool)
            decode = decode_tiles(decodes, shape, pool.shape, pool.dtype)
        if len(prefills.rows):
            shape = (
                TileShape.reproducible(group)
                if reproducible
                else TileShape.fastest(group, decode=False)
            )
            kv_len = int(bucket_end(prefills.context_len - 1).max())
            mask = self._mask(shape, kv_len, pool.dtype)
            prefill = prefill_tiles(prefills, shape, pool.shape, mask)
        return CpuPlan(store_index(batch, pool.shape), decode, prefill)

    def store(self, k: Tensor, v: Tensor, pool: Tensor, layer: int, plan: CpuPlan) -> None:
        """Write K and V, each ``[num_tokens, kv_heads, head_dim]``, of the valid tokens."""
        _, _, _, num_kv_heads, block_size, head_dim = pool.shape
        rows = pool.view(-1, head_dim)[layer * 2 * num_kv_heads * block_size :]
        num_tokens = len(plan.store_index)
        kv = torch.cat((k[:num_tokens], v[:num_tokens]), dim=1)
        rows.index_copy_(0, plan.store_index.view(-1), kv.view(-1, head_dim))

    def paged_decode(
        self, q: Tensor, pool: Tensor, layer: int, batch: PagedBatch, plan: CpuPlan, scale: float,
        out: Tensor, window: int | None = None, soft_cap: float | None = None,
    ) -> None:  # fmt: skip
        if plan.decode is not None:
            self._attend(q, pool, layer, plan.decode, scale, out, window, soft_cap)

    def paged_prefill(
        self, q: Tensor, pool: Tensor, layer: int, batch: PagedBatch, plan: CpuPlan, scale: float,
        out: Tensor, window: int | None = None, soft_cap: float | None = None,
    ) -> None:  # fmt: skip
        if plan.prefill is not None:
            self._attend(q, pool, layer, plan.prefill, scale, out, window, soft_cap)

    def _decode_shape(self, group: int, reproducible: bool, pool: Tensor) -> TileShape:
        if not reproducible:
            return TileShape.fastest(group, decode=True)
        small, whole = TileShape.decode(group), TileShape.reproducible(group)
        kind = (group, pool.shape[5], pool.dtype)
        if kind not in self._agree:
            self._agree[kind] = rows_agree(small.rows, whole.rows, *kind[1:])
        return small if self._agree[kind] else whole

    def _attend(
        self, q: Tensor, pool: Tensor, layer: int, plan: TilePlan, scale: float, out: Tensor,
        window: int | None, soft_cap: float | None,
    ) -> None:  # fmt: skip
        num_kv_heads, head_dim = pool.shape[3], pool.shape[5]
        packed = self._buffer("q", (len(plan.q_index), head_dim), q.dtype)
        torch.index_select(q.reshape(-1, head_dim), 0, plan.q_index, out=packed)
        tiles = packed.view(plan.num_tiles, num_kv_heads, plan.rows, head_dim)
        shape = (plan.num_tiles, plan.rows, num_kv_heads, head_dim)
        results = self._buffer("out", shape, q.dtype)
        masks = iter(plan.masks(window))
        for part in plan.gathers:
            kv = self._gather(pool, layer, part)
            for call in part.calls:
                some = tiles[call.begin : call.end]
                size = (len(some), num_kv_heads, call.kv_len, head_dim)
                k = kv[:, 0, :, : call.kv_len].expand(size)
                v = kv[:, 1, :, : call.kv_len].expand(size)
                mixed = attend(some, k, v, next(masks), scale, soft_cap)
                results[call.begin : call.end] = mixed.transpose(1, 2)
        rows = out[plan.first_token : plan.first_token + plan.num_tokens].view(-1, head_dim)
        torch.index_select(results.view(-1, head_dim), 0, plan.out_index, out=rows)

    def _gather(self, pool: Tensor, layer: int, part: Gather) -> Tensor:
        """KV as ``[num_seqs, 2, kv_heads, kv_len, head_dim]``, zero past each context."""
        _, _, _, num_kv_heads, block_size, head_dim = pool.shape
        blocks = pool.view(-1, block_size * head_dim)[layer * 2 * num_kv_heads :]
        shape = (len(part.index), block_size * head_dim)
        kv = self._buffer("kv", shape, pool.dtype)
        torch.index_select(blocks, 0, part.index, out=kv)
        kv.view(-1, head_dim).index_fill_(0, part.clear, 0)
        return kv.view(part.num_seqs, 2, num_kv_heads, part.kv_len, head_dim)

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uninitialized scratch of this shape; valid until the same name is asked for again."""
        size = int(np.prod(shape))
        have = self._scratch.get(name)
        if have is None or have.dtype != dtype or have.numel() < size:
            have = self._scratch[name] = torch.empty(size, dtype=dtype)
        return have[:size].view(shape)

    def _mask(self, shape: TileShape, kv_len: int, dtype: torch.dtype) -> Tensor:
        have = self._masks.get((shape, dtype))
        if have is None or have.shape[3] < kv_len:
            width = 1 << (kv_len - 1).bit_length()  # grows by doubling
            have = self._masks[shape, dtype] = causal_mask(shape, width, dtype)
        return have


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, soft_cap: float | None
) -> Tensor:
    """SDPA, which knows no soft cap: with one, the same in plain fp32 operations."""
    if soft_cap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    scores = torch.matmul(q.float(), k.float().transpose(-1, -2)).mul_(scale / soft_cap)
    scores.tanh_().mul_(soft_cap).add_(mask)
    return torch.matmul(torch.softmax(scores, dim=-1), v.float()).to(q.dtype)


def rows_agree(rows: int, of_rows: int, head_dim: int, dtype: torch.dtype) -> bool:
    """Whether ``attend`` gives a row of ``rows`` the bits of a row of ``of_rows``, at any place.

    So it was on the machines measured (from 4 rows up, in fp32; with 1 to 3 rows it is not so), and
    fewer rows take less time. It is a property of the matrix library, so ask it.
    """
    generator = torch.Generator().manual_seed(0)
    for kv_len, soft_cap in itertools.product((BUCKET, 9 * BUCKET, 17 * BUCKET), (None, 5.0)):
        shape = (3, 2, kv_len, head_dim)
        k, v = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
        q = torch.randn((3, 2, of_rows, head_dim), generator=generator).to(dtype)
        mask = torch.zeros((3, 1, 1, kv_len), dtype=dtype)
        mask[..., kv_len - 7 :] = float("-inf")
        full = attend(q, k, v, mask, head_dim**-0.5, soft_cap)
        for first in range(0, of_rows - rows + 1, 4):
            some = q[:, :, first : first + rows].contiguous()
            part = attend(some, k, v, mask, head_dim**-0.5, soft_cap)
            if not torch.equal(part, full[:, :, first : first + rows]):
                return False
    return True


def split_sequences(batch: PagedBatch) -> tuple[Sequences, Sequences]:
    """The decodes and the others, without padding."""
    start = batch.query_start.numpy().astype(np.int64)
    rows = batch.seq_rows.numpy().astype(np.int64)
    context = batch.context_lens.numpy().astype(np.int64)
    every = Sequences(batch.block_table.numpy(), rows, start[:-1], np.diff(start), context)
    valid, is_decode = rows != 0, np.arange(len(rows)) < batch.num_decodes
    return every.take(np.flatnonzero(valid & is_decode)), every.take(
        np.flatnonzero(valid & ~is_decode)
    )


def store_index(batch: PagedBatch, pool_shape: torch.Size) -> Tensor:
    _, num_layers, _, num_kv_heads, block_size, _ = pool_shape
    rows = batch.token_rows.numpy()
    num_tokens = int(np.count_nonzero(rows))  # padding stands last
    positions = batch.positions.numpy()[:num_tokens].astype(np.int64)
    pages = batch.block_table.numpy()[rows[:num_tokens], positions // block_size]
    head = np.arange(2 * num_kv_heads)
    first = pages.astype(np.int64)[:, None] * (num_layers * 2 * num_kv_heads) + head
    return torch.from_numpy(first * block_size + (positions % block_size)[:, None])
