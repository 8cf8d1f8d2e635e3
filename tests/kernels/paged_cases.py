"""Random paged batches over a pool whose unused bytes are NaN and Inf patterns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scalesim_kernels import PagedBatch
from torch import Tensor

NUM_LAYERS = 2
STALE = 2_000_000_000  # a block table entry that must never be followed


@dataclass(frozen=True)
class Shape:
    """``lens`` are (context_len, query_len) of the sequences; decodes (query_len 1) come first."""

    group: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    lens: tuple[tuple[int, int], ...]
    padded_seqs: int = 0
    padded_tokens: int = 0

    def __str__(self) -> str:
        heads = f"g{self.group}kv{self.num_kv_heads}d{self.head_dim}"
        return f"{heads}b{self.block_size}n{len(self.lens)}"


DECODES = ((1, 1), (2, 1), (15, 1), (16, 1), (17, 1), (63, 1), (64, 1), (65, 1), (200, 1), (641, 1))
PREFILLS = ((1, 1), (130, 1), (7, 7), (64, 64), (65, 65), (70, 7), (130, 66), (333, 200), (129, 2))
SHAPES = [
    Shape(1, 1, 16, 16, DECODES),
    Shape(2, 2, 64, 16, DECODES, padded_seqs=3, padded_tokens=6),
    Shape(4, 2, 32, 32, PREFILLS, padded_tokens=5),
    Shape(7, 1, 128, 16, PREFILLS),
    Shape(4, 1, 64, 64, PREFILLS),
    Shape(3, 3, 16, 32, PREFILLS),
    Shape(12, 1, 32, 16, ((5, 1), (100, 1), (40, 33))),
    Shape(18, 1, 16, 64, ((5, 1), (100, 1), (40, 33))),
    Shape(1, 4, 80, 16, ((90, 90),)),
]


def garbage(shape: tuple[int, ...], seed: int) -> Tensor:
    """fp32 bit patterns: NaNs of several kinds, infinities, huge and ordinary values."""
    values = torch.tensor([float("nan"), float("inf"), float("-inf"), 3e38, -1.0])
    values = torch.cat(
        (values, torch.tensor([-1, 0x7F800001], dtype=torch.int32).view(torch.float32))
    )
    generator = torch.Generator().manual_seed(seed)
    return values[torch.randint(len(values), shape, generator=generator)]


@dataclass(frozen=True)
class Case:
    shape: Shape
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


def make_case(shape: Shape, seed: int = 0) -> Case:
    """Scattered pages, stale table entries, valid KV random, every other byte garbage."""
    rng = np.random.default_rng(seed)
    needed = [-(-context // shape.block_size) for context, _ in shape.lens]
    num_pages = sum(needed) + 5
    free = rng.permutation(np.arange(1, num_pages)).tolist()
    num_seqs = len(shape.lens)
    table = np.full((num_seqs + 1, max(needed) + 2), STALE, np.int32)
    table[0] = 0
    rows = rng.permutation(num_seqs) + 1
    for row, blocks in zip(rows, needed, strict=True):
        table[row, :blocks] = [free.pop() for _ in range(blocks)]

    decodes = [i for i, (_, n) in enumerate(shape.lens) if n == 1]
    assert not shape.padded_seqs or len(decodes) == num_seqs
    ordered = decodes + [i for i in range(num_seqs) if i not in decodes]
    lens = [shape.lens[i] for i in ordered] + [(0, 1)] * shape.padded_seqs
    seq_rows = [int(rows[i]) for i in ordered] + [0] * shape.padded_seqs
    positions = [p for context, n in lens for p in range(max(0, context - n), max(context, n))]
    token_rows = [r for r, (_, n) in zip(seq_rows, lens, strict=True) for _ in range(n)]
    extra = [0] * shape.padded_tokens
    query_start = np.cumsum([0] + [n for _, n in lens])

    def int32(values: object) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.int32))

    batch = PagedBatch(
        int32(table), int32(positions + extra), int32(token_rows + extra), int32(seq_rows),
        int32(query_start), int32([c for c, _ in lens]), len(decodes) + shape.padded_seqs,
    )  # fmt: skip
    pool_shape = (num_pages, NUM_LAYERS, 2, shape.num_kv_heads, shape.block_size, shape.head_dim)
    case = Case(shape, batch, garbage(pool_shape, seed), sum(n for _, n in shape.lens))
    random = torch.randn(pool_shape, generator=torch.Generator().manual_seed(seed))
    torch.where(case.valid_slots(), random, case.pool, out=case.pool)
    return case
