"""Paged attention and KV store of the CPU set: gathers pages into a contiguous buffer and calls
torch's SDPA.

``CpuAttention`` owns the scratch memory, since large fresh allocations page-fault on every step
(measured: 28 ms against 2.3 ms for the same 38 MB gather). For one thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .contracts import PagedBatch
from .cpu_rows import evenly
from .cpu_tiles import (
    BUCKET,
    GATHER_BYTES,
    Gather,
    Sequences,
    TilePlan,
    TileShape,
    bucket_end,
    causal_mask,
    decode_tiles,
    pool_rows,
    prefill_tiles,
    row_elements,
    row_index,
)
from .float8 import FLOAT8, as_bytes, narrowed


@dataclass(frozen=True, slots=True)
class Heads:
    """The attention shape. With the number of rows and tiles it determines which code path the
    library takes."""

    group: int  # query heads per KV head
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    threads: int


@dataclass(frozen=True, slots=True)
class Form:
    """Which results the library of this machine keeps bit for bit.

    ``small_decodes``: a token has the same bits in the smaller tile of a decode as in a prefill's
    tile. ``together``: a tile has the same bits alone and among other tiles of one call.
    """

    small_decodes: bool
    together: bool


FASTEST = Form(small_decodes=True, together=True)


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """The index tensors of one step. K and V of the ``num_tokens`` valid tokens go to the rows
    ``store_index`` of a layer of the pool. Unless ``together``, each tile is a call of its own."""

    num_tokens: int
    store_index: Tensor
    decode: TilePlan | None
    prefill: TilePlan | None
    together: bool


class CpuAttention:
    """``plan``, ``store``, ``paged_decode`` and ``paged_prefill`` of the CPU set, with shared
    scratch buffers."""

    def __init__(self) -> None:
        self._scratch: dict[str, Tensor] = {}
        self._masks: dict[tuple[TileShape, torch.dtype], Tensor] = {}

    def plan(
        self, batch: PagedBatch, pool: Tensor, num_heads: int, reproducible: bool,
        dtype: torch.dtype | None = None,
    ) -> CpuPlan:  # fmt: skip
        """The plan of one step for all layers; see ``contracts.PlanAttention``."""
        dtype = dtype or pool.dtype
        num_kv_heads, head_dim = pool.shape[3], pool.shape[5]
        group = num_heads // num_kv_heads
        heads = Heads(group, num_kv_heads, head_dim, dtype, torch.get_num_threads())
        form = ask(heads) if reproducible else FASTEST
        decodes, prefills = split_sequences(batch)
        decode = prefill = None
        if len(decodes.rows):
            shape = decode_shape(group, form) if reproducible else TileShape.fastest(group, True)
            decode = decode_tiles(decodes, shape, pool, dtype)
        if len(prefills.rows):
            shape = (
                TileShape.reproducible(group)
                if reproducible
                else TileShape.fastest(group, decode=False)
            )
            kv_len = int(bucket_end(prefills.context_len - 1).max())
            mask = self._mask(shape, kv_len, dtype)
            prefill = prefill_tiles(prefills, shape, pool, mask)
        return CpuPlan(*store_index(batch, pool), decode, prefill, form.together)

    def store(self, k: Tensor, v: Tensor, pool: Tensor, layer: int, plan: CpuPlan) -> None:
        """Write K and V of the valid tokens, each ``[num_tokens, kv_heads, head_dim]``, to their
        pages."""
        row, num_tokens = row_elements(pool, pool.shape[5]), plan.num_tokens
        kv = narrowed(torch.cat((k[:num_tokens], v[:num_tokens]), dim=1), pool.dtype)
        rows = pool_rows(pool, layer, row)
        rows.index_copy_(0, plan.store_index, as_bytes(kv).view(-1, row))

    def paged_decode(
        self, q: Tensor, pool: Tensor, layer: int, batch: PagedBatch, plan: CpuPlan, scale: float,
        out: Tensor, window: int | None = None, soft_cap: float | None = None,
    ) -> None:  # fmt: skip
        """See ``contracts.PagedAttention``."""
        if plan.decode is not None:
            self._attend(q, pool, layer, plan, plan.decode, scale, out, window, soft_cap)

    def paged_prefill(
        self, q: Tensor, pool: Tensor, layer: int, batch: PagedBatch, plan: CpuPlan, scale: float,
        out: Tensor, window: int | None = None, soft_cap: float | None = None,
    ) -> None:  # fmt: skip
        """See ``contracts.PagedAttention``."""
        if plan.prefill is not None:
            self._attend(q, pool, layer, plan, plan.prefill, scale, out, window, soft_cap)

    def _attend(
        self, q: Tensor, pool: Tensor, layer: int, whole: CpuPlan, plan: TilePlan, scale: float,
        out: Tensor, window: int | None, soft_cap: float | None,
    ) -> None:  # fmt: skip
        """Attention of the tiles of ``plan``, a part of ``whole``; writes the rows of their tokens
        in ``out``."""
        num_kv_heads, head_dim = pool.shape[3], pool.shape[5]
        packed = self._buffer("q", (len(plan.q_index), head_dim), q.dtype)
        torch.index_select(q.reshape(-1, head_dim), 0, plan.q_index, out=packed)
        tiles = packed.view(plan.num_tiles, num_kv_heads, plan.rows, head_dim)
        shape = (plan.num_tiles, plan.rows, num_kv_heads, head_dim)
        results = self._buffer("out", shape, q.dtype)
        masks = iter(plan.masks(window))
        for gathered in plan.gathers:
            kv = self._gather(pool, layer, gathered, q.dtype)
            for call in gathered.calls:
                some = tiles[call.begin : call.end]
                size = (len(some), num_kv_heads, call.kv_len, head_dim)
                k = kv[:, 0, :, : call.kv_len].expand(size)
                v = kv[:, 1, :, : call.kv_len].expand(size)
                mask, begin = next(masks), call.begin
                for q_part, k_part, v_part, mask_part in parts(whole.together, some, k, v, mask):
                    mixed = attend(q_part, k_part, v_part, mask_part, scale, soft_cap)
                    results[begin : begin + len(mixed)] = mixed.transpose(1, 2)
                    begin += len(mixed)
        rows = out[plan.first_token : plan.first_token + plan.num_tokens].view(-1, head_dim)
        torch.index_select(results.view(-1, head_dim), 0, plan.out_index, out=rows)

    def _gather(self, pool: Tensor, layer: int, part: Gather, dtype: torch.dtype) -> Tensor:
        """KV of one gather, ``[num_seqs, 2, kv_heads, kv_len, head_dim]`` of ``dtype``, with zeros
        past each context."""
        num_kv_heads, head_dim = pool.shape[3], pool.shape[5]
        rows, shape = pool_rows(pool, layer, part.row), (len(part.index), part.row)
        kv = self._buffer("kv", shape, dtype)
        if pool.dtype == FLOAT8:
            packed = self._buffer("packed", shape, torch.uint8)
            torch.index_select(rows, 0, part.index, out=packed)
            kv.copy_(packed.view(FLOAT8))
        else:
            torch.index_select(rows, 0, part.index, out=kv)
        kv.view(-1, head_dim).index_fill_(0, part.clear, 0)
        return kv.view(part.num_seqs, 2, num_kv_heads, part.kv_len, head_dim)

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uninitialized scratch memory of ``shape``. Valid until the same name is asked for
        again."""
        size = int(np.prod(shape))
        have = self._scratch.get(name)
        if have is None or have.dtype != dtype or have.numel() < size:
            have = self._scratch[name] = torch.empty(size, dtype=dtype)
        return have[:size].view(shape)

    def _mask(self, shape: TileShape, kv_len: int, dtype: torch.dtype) -> Tensor:
        """The causal mask of prefill tiles, at least ``kv_len`` wide; kept and grown by
        doubling."""
        have = self._masks.get((shape, dtype))
        if have is None or have.shape[3] < kv_len:
            width = 1 << (kv_len - 1).bit_length()  # grows by doubling
            have = self._masks[shape, dtype] = causal_mask(shape, width, dtype)
        return have


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, soft_cap: float | None
) -> Tensor:
    """Attention of tiles: q ``[tiles, kv_heads, rows, head_dim]``, k and v ``[tiles, kv_heads,
    kv_len, head_dim]``; the result is shaped as q. SDPA has no soft cap: with one, the same
    computation in fp32 operations."""
    if soft_cap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    scores = torch.matmul(q.float(), k.float().transpose(-1, -2)).mul_(scale / soft_cap)
    evenly(torch.Tensor.tanh_, scores)
    scores.mul_(soft_cap).add_(mask)
    return torch.matmul(torch.softmax(scores, dim=-1), v.float()).to(q.dtype)


def parts(
    together: bool, q: Tensor, k: Tensor, v: Tensor, mask: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The first four arguments of ``attend``: as they are if ``together``, else tile by tile."""
    if together:
        yield q, k, v, mask
        return
    for i in range(len(q)):
        tile = slice(i, i + 1)
        yield q[tile], k[tile], v[tile], mask[tile] if len(mask) > 1 else mask


def decode_shape(group: int, form: Form) -> TileShape:
    """The shape of a decode's tiles, for reproducible attention."""
    return TileShape.decode(group) if form.small_decodes else TileShape.reproducible(group)


# -- asking the library --------------------------------------------------------------------------

ASKED_BUCKETS = (1, 9, 17)  # KV lengths, in buckets, on each side of SDPA's own splits
ASKED_CAPS = (None, 5.0)


@cache
def ask(heads: Heads) -> Form:
    """The ``Form`` of this machine, found by trying calls of the shapes that ``plan`` makes. (In
    fp32, tiles were seen to agree from 4 rows on, and not with 1 to 3.)"""
    trials = [
        FormTrial(heads, buckets * BUCKET, soft_cap)
        for buckets in ASKED_BUCKETS
        for soft_cap in ASKED_CAPS
    ]
    small = all(trial.small_decode_agrees() for trial in trials)
    return Form(small, together=all(trial.tiles_agree(small) for trial in trials))


class FormTrial:
    """Trial calls of one KV length over random Q, K and V. KV is laid out as ``CpuAttention``
    gathers it."""

    def __init__(self, heads: Heads, kv_len: int, soft_cap: float | None) -> None:
        self._heads, self._kv_len, self._soft_cap = heads, kv_len, soft_cap
        self._prefill = TileShape.reproducible(heads.group)
        self._decode = TileShape.decode(heads.group)
        seq_bytes = 2 * heads.num_kv_heads * kv_len * heads.head_dim * heads.dtype.itemsize
        self._max_tiles = max(1, GATHER_BYTES // seq_bytes)  # of one call
        self._generator = torch.Generator().manual_seed(0)

    def small_decode_agrees(self) -> bool:
        """Whether each token of a prefill's tile has the same bits in the smaller tile of a
        decode."""
        group = self._heads.group
        unused = torch.arange(self._decode.rows).clamp(max=group - 1)
        kv = self._random(1, 2, self._heads.num_kv_heads, self._kv_len + BUCKET)
        q = self._random(1, self._heads.num_kv_heads, self._prefill.rows)
        whole = self._attend(q, kv)
        alone = kv[:, :, :, : self._kv_len].contiguous()
        for token in range(self._prefill.tokens):
            first = token * group
            part = self._attend(q[:, :, first + unused], alone)[:, :, :group]
            if not torch.equal(part, whole[:, :, first : first + group]):
                return False
        return True

    def tiles_agree(self, small: bool) -> bool:
        """Whether a tile has the same bits alone and in a call with other tiles: of other
        sequences, as in decodes, and of the same sequence, as in a prefill."""
        shape, heads = self._decode if small else self._prefill, self._heads
        for tiles in {min(tiles, self._max_tiles) for tiles in (2, 3, 17)}:
            kv = self._random(tiles, 2, heads.num_kv_heads, self._kv_len)
            if not self._each_alone(self._random(tiles, heads.num_kv_heads, shape.rows), kv):
                return False
        kv = self._random(1, 2, heads.num_kv_heads, self._kv_len + BUCKET)
        for tiles in range(2, BUCKET // self._prefill.tokens + 1):
            q = self._random(tiles, heads.num_kv_heads, self._prefill.rows)
            if not self._each_alone(q, kv):
                return False
        return True

    def _each_alone(self, q: Tensor, kv: Tensor) -> bool:
        together = self._attend(q, kv)
        own_kv = kv.expand(len(q), *kv.shape[1:])
        return all(
            torch.equal(self._attend(q[i : i + 1], own_kv[i : i + 1]), together[i : i + 1])
            for i in {0, len(q) // 2, len(q) - 1}
        )

    def _attend(self, q: Tensor, kv: Tensor) -> Tensor:
        heads = self._heads
        size = (len(q), heads.num_kv_heads, self._kv_len, heads.head_dim)
        k, v = (kv[:, i, :, : self._kv_len].expand(size) for i in range(2))
        mask = torch.zeros((1, 1, 1, self._kv_len), dtype=heads.dtype)
        mask[..., self._kv_len - 7 :] = float("-inf")
        return attend(q, k, v, mask, heads.head_dim**-0.5, self._soft_cap)

    def _random(self, *shape: int) -> Tensor:
        values = torch.randn((*shape, self._heads.head_dim), generator=self._generator)
        return values.to(self._heads.dtype)


def split_sequences(batch: PagedBatch) -> tuple[Sequences, Sequences]:
    """The decodes of a batch, and its other sequences; both without padding."""
    start = batch.query_start.numpy().astype(np.int64)
    rows = batch.seq_rows.numpy().astype(np.int64)
    context = batch.context_lens.numpy().astype(np.int64)
    every = Sequences(batch.block_table.numpy(), rows, start[:-1], np.diff(start), context)
    valid, is_decode = rows != 0, np.arange(len(rows)) < batch.num_decodes
    return every.take(np.flatnonzero(valid & is_decode)), every.take(
        np.flatnonzero(valid & ~is_decode)
    )


def store_index(batch: PagedBatch, pool: Tensor) -> tuple[int, Tensor]:
    """The number of valid tokens, and the rows of a layer to which their K and V heads go."""
    block_size, head_dim = pool.shape[4:]
    rows = batch.token_rows.numpy()
    num_tokens = int(np.count_nonzero(rows))  # padding stands last
    positions = batch.positions.numpy()[:num_tokens, None].astype(np.int64)
    table = batch.block_table.numpy()
    pages = table[rows[:num_tokens, None], positions // block_size].astype(np.int64)
    row = row_elements(pool, head_dim)
    return num_tokens, row_index(pool, pages, positions, head_dim, row)
