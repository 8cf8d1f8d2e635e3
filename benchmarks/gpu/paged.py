"""Random paged batches for the kernel sections: every sequence's pages scattered over the pool."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scalesim_kernels import PagedBatch
from torch import Tensor

from benchmarks.gpu.bench import Bench


@dataclass(frozen=True)
class Heads:
    """A model's attention. ``LLAMA_8B``: a page of 16 tokens in bf16 has 2 MiB."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_layers: int

    def page_elements(self, block_size: int) -> int:
        return self.num_layers * 2 * self.num_kv_heads * block_size * self.head_dim

    def kv_bytes(self, tokens: int, itemsize: int) -> int:
        """Of one layer."""
        return tokens * 2 * self.num_kv_heads * self.head_dim * itemsize


LLAMA_8B = Heads(32, 8, 128, 32)
TINY = Heads(4, 2, 16, 2)


def heads_of(bench: Bench) -> Heads:
    return TINY if bench.tiny else LLAMA_8B


def make_batch(
    bench: Bench, contexts: list[int], queries: list[int], num_pages: int, block_size: int,
    seed: int = 0,
) -> PagedBatch:  # fmt: skip
    """Sequences of ``contexts`` tokens whose last ``queries`` are computed now, decodes first."""
    rng = np.random.default_rng(seed)
    blocks = [-(-context // block_size) for context in contexts]
    assert sum(blocks) < num_pages, (sum(blocks), num_pages)
    pages = rng.permutation(num_pages - 1)[: sum(blocks)] + 1
    table = np.zeros((len(contexts) + 1, max(blocks)), np.int32)
    for row, (end, count) in enumerate(zip(np.cumsum(blocks), blocks, strict=True), 1):
        table[row, :count] = pages[end - count : end]
    positions = [
        np.arange(context - query, context)
        for context, query in zip(contexts, queries, strict=True)
    ]
    rows = np.arange(1, len(contexts) + 1)

    def int32(values: object) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.int32)).to(bench.place)

    return PagedBatch(
        block_table=int32(table),
        positions=int32(np.concatenate(positions)),
        token_rows=int32(np.repeat(rows, queries)),
        seq_rows=int32(rows),
        query_start=int32(np.concatenate(([0], np.cumsum(queries)))),
        context_lens=int32(contexts),
        num_decodes=sum(query == 1 for query in queries),
    )


def gathered(pool: Tensor, layer: int, batch: PagedBatch, context: int) -> tuple[Tensor, Tensor]:
    """K and V of equally long sequences as SDPA takes them: two
    ``[num_seqs, num_kv_heads, context, head_dim]``, copied out of their pages."""
    blocks = -(-context // pool.shape[4])
    pages = batch.block_table[batch.seq_rows.long(), :blocks].long()
    kv = pool[pages, layer]  # [num_seqs, blocks, 2, num_kv_heads, block_size, head_dim]
    kv = kv.permute(2, 0, 3, 1, 4, 5).flatten(3, 4)[:, :, :, :context]
    return kv[0], kv[1]
