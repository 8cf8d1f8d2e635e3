"""Attention tiles of the CPU set: which rows of Q and which pages go into each SDPA call of a step.

A tile is a few tokens of one sequence times the query heads of one KV head, packed into the rows of
one small matrix. The tokens of a tile have the same ``position // tokens``, and the tile's KV ends
at the next multiple of 64. Both follow from absolute positions alone, so a token has the same place
in the same tile over the same KV length however its prefill is chunked and whatever else is in the
batch. Attention is then reproducible if the tiles of one call do not affect each other's bits:
``cpu_attention.ask`` finds that out, and where they do, each tile is a call of its own. A decode's
tile has one token, and fewer rows where SDPA gives the same bits for them.

This file has only index arithmetic, done once a step; ``cpu_attention`` runs it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .float8 import as_bytes

Ints: TypeAlias = npt.NDArray[np.int64]

BUCKET = 64  # KV lengths are multiples of this
TILE_TOKENS = 16  # of a prefill; measured: half the time of 4 tokens, and no more with 64
DECODE_ROWS = 4  # a decode's tile has a multiple of these, as few as hold its query heads
GATHER_BYTES = 6 << 20  # KV gathered for one SDPA call: stays in a shared cache level


@dataclass(frozen=True, slots=True)
class TileShape:
    """``tokens`` x ``group`` query heads in ``rows`` rows, some of them unused. ``tokens`` divides
    64."""

    group: int  # query heads per KV head
    tokens: int
    rows: int

    @staticmethod
    def reproducible(group: int) -> TileShape:
        """The tile of a prefill, in which a token's bits do not depend on the chunking."""
        return TileShape(group, TILE_TOKENS, TILE_TOKENS * group)

    @staticmethod
    def decode(group: int) -> TileShape:
        """The smaller tile of a decode: one token."""
        return TileShape(group, 1, -(-group // DECODE_ROWS) * DECODE_ROWS)

    @staticmethod
    def fastest(group: int, decode: bool) -> TileShape:
        """A tile without unused rows. Its shape, and so the last bits of its results, differ
        between decode and prefill."""
        tokens = 1 if decode else BUCKET
        return TileShape(group, tokens, tokens * group)

    def row_tokens(self) -> Ints:
        """The token of the tile that each row belongs to, ``[rows]``; unused rows belong to the
        last token."""
        return np.minimum(np.arange(self.rows), self.tokens * self.group - 1) // self.group


@dataclass(frozen=True, slots=True)
class SdpaCall:
    """One SDPA call: the tiles ``begin:end`` over the first ``kv_len`` positions of the gathered
    KV."""

    begin: int
    end: int
    kv_len: int
    mask: Tensor  # [tiles or 1, 1, rows or 1, kv_len], 0 or -inf, the model's dtype
    positions: Ints  # [tiles, rows or 1], of the query tokens

    def windowed(self, window: int) -> Tensor:
        """The mask that also hides, from each row, all but the last ``window`` positions."""
        gone = np.arange(self.kv_len) <= self.positions[:, :, None] - window
        return self.mask.masked_fill(torch.from_numpy(gone)[:, None], float("-inf"))


@dataclass(frozen=True, slots=True)
class Gather:
    """The KV of ``num_seqs`` sequences, ``[seq, 2, kv_head, kv_len, head_dim]``, and the calls over
    it.

    ``index`` counts rows of ``row`` elements from the first one of a layer. ``clear`` counts rows
    of ``head_dim`` in the gathered buffer: positions past the context, which hold garbage and are
    set to zero.
    """

    num_seqs: int
    kv_len: int
    row: int
    index: Tensor
    clear: Tensor
    calls: tuple[SdpaCall, ...]


@dataclass(frozen=True, slots=True)
class TilePlan:
    """All tiles of a step's decodes, or of its prefills."""

    first_token: int
    num_tokens: int
    num_tiles: int
    rows: int
    q_index: Tensor  # [num_tiles * kv_heads * rows] -> row of Q as [num_tokens * heads, head_dim]
    out_index: Tensor  # [num_tokens * heads] -> row of the results [tiles, rows, kv_heads]
    gathers: tuple[Gather, ...]
    _windowed: dict[int, list[Tensor]] = field(default_factory=dict)

    def masks(self, window: int | None) -> list[Tensor]:
        """The masks of all calls, in order; made once for all layers of a step that have the same
        window."""
        calls = [call for part in self.gathers for call in part.calls]
        if window is None:
            return [call.mask for call in calls]
        if window not in self._windowed:
            self._windowed[window] = [call.windowed(window) for call in calls]
        return self._windowed[window]


@dataclass(frozen=True, slots=True)
class Sequences:
    """Some sequences of a batch, as int64 arrays ``[n]``; ``table`` is the block table ``[rows,
    max_blocks]``."""

    table: npt.NDArray[np.int32]
    rows: Ints
    first_token: Ints
    num_tokens: Ints
    context_len: Ints

    @property
    def first_position(self) -> Ints:
        return self.context_len - self.num_tokens

    def take(self, which: Ints | slice) -> Sequences:
        """The sequences of these indices."""
        arrays = (self.rows, self.first_token, self.num_tokens, self.context_len)
        return Sequences(self.table, *(a[which] for a in arrays))


def bucket_end(positions: Ints) -> Ints:
    """The KV length of each position: the end of its bucket of 64 positions."""
    return (positions // BUCKET + 1) * BUCKET


def q_index(
    shape: TileShape, seqs: Sequences, tile_seq: Ints, tile_base: Ints, num_kv_heads: int
) -> Tensor:
    """The row of Q of every tile row. Unused rows repeat a token of the same sequence."""
    row = np.minimum(np.arange(shape.rows), shape.tokens * shape.group - 1)
    position = tile_base[:, None] + row // shape.group
    first, count = seqs.first_token[tile_seq, None], seqs.num_tokens[tile_seq, None]
    token = first + np.clip(position - seqs.first_position[tile_seq, None], 0, count - 1)
    head = np.arange(num_kv_heads)[:, None] * shape.group + row % shape.group
    index = token[:, None] * (num_kv_heads * shape.group) + head
    return torch.from_numpy(index.reshape(-1))


def out_index(shape: TileShape, token_tile: Ints, positions: Ints, num_kv_heads: int) -> Tensor:
    """The tile row of every output row."""
    head = np.arange(num_kv_heads * shape.group)
    row = (positions % shape.tokens)[:, None] * shape.group + head % shape.group
    index = (token_tile[:, None] * shape.rows + row) * num_kv_heads + head // shape.group
    return torch.from_numpy(index.reshape(-1))


def row_elements(pool: Tensor, width: int) -> int:
    """The elements of the longest rows of equal length into which the pool's memory can be cut so
    that some of them make ``width`` elements. Pages may be longer than what is used of them."""
    return gcd(width, pool.stride(0))


def pool_rows(pool: Tensor, layer: int, row: int) -> Tensor:
    """The pool's memory from the first element of ``layer`` on, ``[n, row]``; fp8 as bytes."""
    skipped = layer * pool.stride(1)
    count = (len(pool) - 1) * pool.stride(0) + pool[0].numel() - skipped
    flat = as_bytes(pool)
    return flat.as_strided((count // row, row), (row, 1), flat.storage_offset() + skipped)


def row_index(pool: Tensor, pages: Ints, positions: Ints, width: int, row: int) -> Tensor:
    """The rows of ``row`` elements, from the first one of a layer, with K and V of all heads from
    each of ``positions`` (``[..., n]``, in ``pages``) on, ``width`` elements: int64, in the order
    ``[..., K or V, kv_head, n]``."""
    _, _, _, num_kv_heads, block_size, head_dim = pool.shape
    head = np.arange(2 * num_kv_heads)[:, None] * (block_size * head_dim // row)
    slot = pages * (pool.stride(0) // row) + positions % block_size * head_dim // row
    first = slot[..., None, :] + head
    if row < width:
        first = first[..., None] + np.arange(width // row)
    return torch.from_numpy(first.reshape(-1))


def gather(seqs: Sequences, kv_len: int, pool: Tensor, calls: tuple[SdpaCall, ...]) -> Gather:
    """The gather of ``seqs``, each to ``kv_len`` positions, in parts that lie in one page each."""
    _, _, _, num_kv_heads, block_size, head_dim = pool.shape
    part = gcd(block_size, BUCKET)
    positions = np.arange(0, kv_len, part)
    # Parts past the context read the sequence's first part: entries there are stale.
    positions = np.where(positions < seqs.context_len[:, None], positions, 0)
    pages = seqs.table[seqs.rows[:, None], positions // block_size].astype(np.int64)
    row = row_elements(pool, part * head_dim)
    return Gather(
        len(seqs.rows), kv_len, row, row_index(pool, pages, positions, part * head_dim, row),
        clear_index(seqs, kv_len, num_kv_heads, part), calls,
    )  # fmt: skip


def clear_index(seqs: Sequences, kv_len: int, num_kv_heads: int, part: int) -> Tensor:
    """The positions to be cleared in the gathered buffer: those past each context."""
    # A full first part holds finite values, which the mask alone removes: only the tail of the
    # last part needs clearing then. Within the first part, its repeats hold garbage too.
    context = seqs.context_len
    end = np.where(context >= part, -(-context // part) * part, kv_len)
    tail = np.arange(kv_len - BUCKET, kv_len)
    seq, offset = np.nonzero((tail >= context[:, None]) & (tail < end[:, None]))
    head = np.arange(2 * num_kv_heads)[:, None]
    index = (seq * 2 * num_kv_heads + head) * kv_len + tail[offset]
    return torch.from_numpy(index.reshape(-1))


def decode_tiles(seqs: Sequences, shape: TileShape, pool: Tensor, dtype: torch.dtype) -> TilePlan:
    """One tile for each sequence, in order of KV length; sequences of one length share calls."""
    num_kv_heads, head_dim = pool.shape[3], pool.shape[5]
    num_seqs, positions = len(seqs.rows), seqs.context_len - 1
    kv_len = bucket_end(positions)
    order = np.argsort(kv_len, kind="stable")
    tile_of = np.empty(num_seqs, np.int64)
    tile_of[order] = np.arange(num_seqs)
    tile_base = positions // shape.tokens * shape.tokens
    gathers, begin = [], 0
    while begin < num_seqs:
        length = int(kv_len[order[begin]])
        seq_bytes = 2 * num_kv_heads * length * head_dim * dtype.itemsize
        same = int(np.searchsorted(kv_len[order], length, side="right"))
        end = min(same, begin + max(1, GATHER_BYTES // seq_bytes))
        chosen = order[begin:end]
        hidden = torch.from_numpy(np.arange(length) > positions[chosen, None])
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
        call = SdpaCall(begin, end, length, mask[:, None, None], positions[chosen, None])
        gathers.append(gather(seqs.take(chosen), length, pool, (call,)))
        begin = end
    return TilePlan(
        0, num_seqs, num_seqs, shape.rows,
        q_index(shape, seqs, order, tile_base[order], num_kv_heads),
        out_index(shape, tile_of, positions, num_kv_heads), tuple(gathers),
    )  # fmt: skip


def causal_mask(shape: TileShape, kv_len: int, dtype: torch.dtype) -> Tensor:
    """The mask of all tiles of one bucket, ``[64 / tokens, 1, rows, kv_len]``.

    Only the last 64 columns differ from 0, so a slice of the end serves every shorter ``kv_len``.
    """
    token = np.arange(0, BUCKET, shape.tokens)[:, None] + shape.row_tokens()
    hidden = np.arange(kv_len) > token[:, :, None] + kv_len - BUCKET
    mask = torch.zeros(hidden.shape, dtype=dtype)
    return mask.masked_fill_(torch.from_numpy(hidden), float("-inf"))[:, None]


def prefill_tiles(seqs: Sequences, shape: TileShape, pool: Tensor, mask: Tensor) -> TilePlan:
    """All tiles of every sequence: one gather for each sequence, one call for each bucket of 64
    positions.

    mask : from ``causal_mask``, at least as wide as the bucket of the longest context.
    """
    num_kv_heads, per_bucket = pool.shape[3], BUCKET // shape.tokens
    row_token = shape.row_tokens()
    tile_seq, tile_base, token_tile, positions, gathers = [], [], [], [], []
    begin = 0
    for i, (start, stop) in enumerate(
        zip(seqs.first_position.tolist(), seqs.context_len.tolist(), strict=True)
    ):
        first, last = start // shape.tokens, -(-stop // shape.tokens)
        calls = []
        for low in range(first // per_bucket * per_bucket, last, per_bucket):
            a, b = max(first, low), min(last, low + per_bucket)
            length = (low // per_bucket + 1) * BUCKET
            part = mask[a - low : b - low, :, :, mask.shape[3] - length :]
            of_rows = np.arange(a, b)[:, None] * shape.tokens + row_token
            calls.append(SdpaCall(begin + a - first, begin + b - first, length, part, of_rows))
        gathers.append(gather(seqs.take(slice(i, i + 1)), length, pool, tuple(calls)))
        token = np.arange(start, stop)
        tile_seq.append(np.full(last - first, i))
        tile_base.append(np.arange(first, last) * shape.tokens)
        token_tile.append(token // shape.tokens - first + begin)
        positions.append(token)
        begin += last - first
    join = np.concatenate
    return TilePlan(
        int(seqs.first_token[0]), int(seqs.num_tokens.sum()), begin, shape.rows,
        q_index(shape, seqs, join(tile_seq), join(tile_base), num_kv_heads),
        out_index(shape, join(token_tile), join(positions), num_kv_heads), tuple(gathers),
    )  # fmt: skip
