"""Random paged batches over a pool whose unused bytes are NaN and Inf patterns.

Also for tests of other kinds: ``make_case`` gives a ``PagedBatch`` and a pool of fp32 on the CPU.
``spread`` moves a case into a pool of more than 2**31 elements, of which only the used pages ever
become memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..contracts import PagedBatch
from ..float8 import FLOAT8, as_bytes

NUM_LAYERS = 2
STALE = 2_000_000_000  # a block table entry that must never be followed
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class PagedShape:
    """``lens`` are (context_len, query_len) of the sequences; decodes (query_len 1) come first.
    ``shared``: sequences have the same pages at the blocks that end before this position, and
    before their own end."""

    group: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    lens: tuple[tuple[int, int], ...]
    padded_seqs: int = 0
    padded_tokens: int = 0
    shared: int = 0

    def __str__(self) -> str:
        heads = f"g{self.group}kv{self.num_kv_heads}d{self.head_dim}"
        return f"{heads}b{self.block_size}n{len(self.lens)}"


@dataclass(frozen=True)
class PagedCase:
    shape: PagedShape
    batch: PagedBatch
    pool: Tensor
    num_valid: int  # query tokens that are not padding

    @property
    def num_heads(self) -> int:
        return self.shape.group * self.shape.num_kv_heads

    @property
    def num_tokens(self) -> int:
        return len(self.batch.positions)

    def valid_slots(self) -> Tensor:
        """Which pool slots hold valid KV: bool ``[pages, 1, 1, 1, block_size, 1]``."""
        block_size = self.shape.block_size
        mask = torch.zeros((len(self.pool), block_size), dtype=torch.bool)
        for row, length in zip(
            self.batch.seq_rows.tolist(), self.batch.context_lens.tolist(), strict=True
        ):
            for position in range(length):
                page = self.batch.block_table[row, position // block_size]
                mask[page, position % block_size] = True
        return mask[:, None, None, None, :, None]


def garbage(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """NaNs of several bit patterns, infinities, huge and ordinary values."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == FLOAT8:  # no infinities
        codes = torch.tensor([0x7F, 0xFF, 0x7E, 0xB8], dtype=torch.uint8)
        return codes[torch.randint(len(codes), shape, generator=generator)].view(FLOAT8)
    values = torch.tensor([float("nan"), float("inf"), float("-inf"), 3e38, -1.0]).to(dtype)
    integer = INTEGERS[dtype.itemsize]
    signalling = torch.tensor([float("inf")], dtype=dtype).view(integer) + 1
    patterns = torch.cat((torch.tensor([-1], dtype=integer), signalling)).view(dtype)
    values = torch.cat((values, patterns))
    return values[torch.randint(len(values), shape, generator=generator)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    integer = INTEGERS.get(a.dtype.itemsize)
    if a.dtype != b.dtype or a.shape != b.shape or integer is None:
        return False
    return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


def make_case(shape: PagedShape, seed: int = 0, dtype: torch.dtype = torch.float32) -> PagedCase:
    """Scattered pages, stale table entries, valid KV random, every other byte garbage."""
    rng = np.random.default_rng(seed)
    needed = [-(-context // shape.block_size) for context, _ in shape.lens]
    num_pages = sum(needed) + shape.shared // shape.block_size + 5
    free = rng.permutation(np.arange(1, num_pages)).tolist()
    num_seqs = len(shape.lens)
    table = np.full((num_seqs + 1, max(needed) + 2), STALE, np.int32)
    table[0] = 0
    rows = rng.permutation(num_seqs) + 1
    common = [free.pop() for _ in range(shape.shared // shape.block_size)]
    for row, blocks in zip(rows, needed, strict=True):
        begin = common[: blocks - 1]
        table[row, :blocks] = begin + [free.pop() for _ in range(blocks - len(begin))]

    decodes = [i for i, (_, n) in enumerate(shape.lens) if n == 1]
    ordered = decodes + [i for i in range(num_seqs) if i not in decodes]
    # A padding sequence among the decodes has one query token; behind prefills it has one too.
    lens = [shape.lens[i] for i in ordered] + [(0, 1)] * shape.padded_seqs
    seq_rows = [int(rows[i]) for i in ordered] + [0] * shape.padded_seqs
    positions = [p for context, n in lens for p in range(max(0, context - n), max(context, n))]
    token_rows = [r for r, (_, n) in zip(seq_rows, lens, strict=True) for _ in range(n)]
    extra = [0] * shape.padded_tokens
    query_start = np.cumsum([0] + [n for _, n in lens])
    num_decodes = len(decodes) + (shape.padded_seqs if len(decodes) == num_seqs else 0)

    def int32(values: object) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.int32))

    batch = PagedBatch(
        int32(table), int32(positions + extra), int32(token_rows + extra), int32(seq_rows),
        int32(query_start), int32([c for c, _ in lens]), num_decodes,
    )  # fmt: skip
    pool_shape = (num_pages, NUM_LAYERS, 2, shape.num_kv_heads, shape.block_size, shape.head_dim)
    case = PagedCase(shape, batch, garbage(pool_shape, seed, dtype), sum(n for _, n in shape.lens))
    random = torch.randn(pool_shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    kept = torch.where(case.valid_slots(), as_bytes(random), as_bytes(case.pool))
    return replace(case, pool=kept.view(dtype))


def far_pages(num_pages: int, page_elements: int) -> Tensor:
    """Page ids for a small pool's pages, ``[num_pages]`` int64; all but page 0 lie past 2**31."""
    first = 2**31 // page_elements + 1
    ids = torch.arange(num_pages) + first
    ids[0] = 0
    return ids


def spread(batch: PagedBatch, pool: Tensor, ids: Tensor) -> tuple[PagedBatch, Tensor]:
    """The same case with page ``i`` at ``ids[i]`` of a larger pool, otherwise uninitialized."""
    table = batch.block_table
    known = (table >= 0) & (table < len(ids))
    moved = torch.where(known, ids.to(table)[torch.where(known, table, 0).long()], table)
    large = torch.empty((int(ids.max()) + 1, *pool.shape[1:]), dtype=pool.dtype, device=pool.device)
    as_bytes(large)[ids.to(pool.device)] = as_bytes(pool)
    return replace(batch, block_table=moved.int()), large
