"""A step's tensors from a ``Batch``: decodes before prefills, as the kernels want them, and padded.

Index arithmetic in numpy, once per step; called by the runners.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scalesim_kernels import PagedBatch

from scalesim.batch import NO_TOKEN, Batch
from scalesim.core import Int32s, Int64s


@dataclass(frozen=True)
class Arranged:
    """Where a batch's sequences and tokens stand when the decodes come first."""

    order: Int64s  # [num_seqs], the batch's index of arranged sequence i
    seq: Int64s  # [num_tokens], the batch's index of each arranged token's sequence
    source: Int64s  # [num_tokens], each arranged token's place in the batch
    positions: Int32s  # [num_tokens], absolute, of the arranged tokens
    query_start: Int32s  # [num_seqs + 1], of the arranged sequences
    picked: Int64s  # [num_samples], the arranged sequences that sample
    num_decodes: int

    @property
    def sampling(self) -> Int64s:
        """``[num_samples]``: the batch's index of each sequence that samples, arranged."""
        return self.order[self.picked]

    @cached_property
    def last(self) -> Int64s:
        """``[num_seqs]``: the last token of each arranged sequence."""
        return self.query_start[1:].astype(np.int64) - 1

    @cached_property
    def row_of(self) -> Int64s:
        """``[num_tokens]``: where each token of the batch is arranged."""
        row_of = np.empty(len(self.source), np.int64)
        row_of[self.source] = np.arange(len(self.source))
        return row_of

    def spans(self, spans: Int32s) -> list[slice]:
        """Where half-open ranges of the batch's tokens are arranged, each of them within one
        sequence: its tokens stay together."""
        firsts, counts = self.row_of[spans[:, 0]], spans[:, 1] - spans[:, 0]
        ends = (firsts + counts).tolist()
        return [slice(first, end) for first, end in zip(firsts.tolist(), ends, strict=True)]


def arrange(batch: Batch) -> Arranged:
    """Sequences of one query token first; a batch of one kind keeps its order."""
    counts = np.diff(batch.query_start)
    order = np.argsort(counts != 1, kind="stable")
    counts = counts[order]
    query_start = np.zeros(batch.num_seqs + 1, np.int32)
    np.cumsum(counts, out=query_start[1:])
    seq = np.repeat(order, counts)
    source = np.arange(len(seq)) + np.repeat(batch.query_start[order] - query_start[:-1], counts)
    num_decodes = int(np.count_nonzero(counts == 1))
    positions, picked = batch.positions[source], np.flatnonzero(batch.sample[order])
    return Arranged(order, seq, source, positions, query_start, picked, num_decodes)


def paged_batch(
    batch: Batch,
    arranged: Arranged,
    table: Int32s,
    last_token: Int32s,
    padded: Callable[[int], int],
) -> tuple[Int32s, PagedBatch]:
    """The arranged token ids, ``NO_TOKEN`` resolved, and what the kernels need to know of them;
    both padded.

    table : the block table ``[rows, max_blocks]``, shared, not copied. last_token : ``[slots]``.
    padded : the row count that a token count is padded to.
    """
    length = padded(len(arranged.seq))
    given = batch.token_ids[arranged.source]
    token_ids = np.where(given == NO_TOKEN, last_token[batch.slots[arranged.seq]], given)
    paged = PagedBatch(
        block_table=torch.from_numpy(table),
        positions=torch.from_numpy(_pad(arranged.positions, length)),
        token_rows=torch.from_numpy(_pad(batch.rows[arranged.seq], length)),
        seq_rows=torch.from_numpy(batch.rows[arranged.order]),
        query_start=torch.from_numpy(arranged.query_start),
        context_lens=torch.from_numpy(arranged.positions[arranged.last] + 1),
        num_decodes=arranged.num_decodes,
    )
    return _pad(token_ids, length), paged


def _pad(values: Int32s, length: int) -> Int32s:
    padded = np.zeros(length, np.int32)
    padded[: len(values)] = values
    return padded
