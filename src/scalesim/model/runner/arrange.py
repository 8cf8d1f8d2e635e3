"""The arrangement of a batch for the kernels: decodes before prefills, and padded.

Index arithmetic in numpy, once per step. Used by both runners.
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
    """The order of a batch's sequences and tokens with decodes first."""

    order: Int64s  # [num_seqs]: by arranged sequence, its index in the batch
    seq: Int64s  # [num_tokens]: by arranged token, the index of its sequence in the batch
    source: Int64s  # [num_tokens]: by arranged token, its index in the batch
    positions: Int32s  # [num_tokens]: by arranged token, its absolute position
    query_start: Int32s  # [num_seqs + 1]: by arranged sequence, the index of its first token
    picked: Int64s  # [num_samples]: the arranged sequences that sample
    num_decodes: int

    @property
    def sampling(self) -> Int64s:
        """``[num_samples]``: the index in the batch of each sequence that samples, in arranged
        order."""
        return self.order[self.picked]

    @cached_property
    def last(self) -> Int64s:
        """``[num_seqs]``: the index of the last token of each arranged sequence."""
        return self.query_start[1:].astype(np.int64) - 1

    @cached_property
    def row_of(self) -> Int64s:
        """``[num_tokens]``: the arranged index of each token of the batch."""
        row_of = np.empty(len(self.source), np.int64)
        row_of[self.source] = np.arange(len(self.source))
        return row_of

    def spans(self, spans: Int32s) -> list[slice]:
        """The arranged ranges of half-open ranges ``[n, 2]`` of the batch's tokens. Each range lies
        within one sequence, whose tokens stay together."""
        firsts, counts = self.row_of[spans[:, 0]], spans[:, 1] - spans[:, 0]
        ends = (firsts + counts).tolist()
        return [slice(first, end) for first, end in zip(firsts.tolist(), ends, strict=True)]


def arrange(batch: Batch) -> Arranged:
    """Put sequences of one query token first; the order is stable."""
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
    """The arranged token ids, with ``NO_TOKEN`` resolved, and the kernels' description of the
    batch; both padded.

    table : the block table ``[rows, max_blocks]``; shared, not copied.
    last_token : ``[slots]``, the newest token of each slot.
    padded : the number of rows for a number of tokens.
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
