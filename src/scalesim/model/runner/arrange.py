"""A step's tensors from a ``Batch``: decodes before prefills, as the kernels want them, and padded.

Index arithmetic in numpy, once per step; called by the runners.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scalesim_kernels import PagedBatch

from scalesim.batch import NO_TOKEN, Batch
from scalesim.core import Int32s, Int64s


@dataclass(frozen=True, slots=True)
class Arranged:
    """``order[i]`` is the batch's index of ordered sequence ``i``, ``seq`` that of each ordered
    token's sequence, ``source`` each ordered token's place in the batch."""

    order: Int64s  # [num_seqs]
    seq: Int64s  # [num_tokens]
    source: Int64s  # [num_tokens]
    query_start: Int32s  # [num_seqs + 1], of the ordered sequences
    num_decodes: int


def arrange(batch: Batch) -> Arranged:
    """Sequences of one query token first; a batch of one kind keeps its order."""
    counts = np.diff(batch.query_start)
    order = np.argsort(counts != 1, kind="stable")
    counts = counts[order]
    query_start = np.zeros(batch.num_seqs + 1, np.int32)
    np.cumsum(counts, out=query_start[1:])
    seq = np.repeat(order, counts)
    shift = np.repeat(batch.query_start[order] - query_start[:-1], counts)
    source = np.arange(len(seq)) + shift
    return Arranged(order, seq, source, query_start, int(np.count_nonzero(counts == 1)))


@dataclass(frozen=True, slots=True)
class Ordered:
    """``order[i]`` is the batch's index of ordered sequence ``i``; ``last[i]``, its last token;
    ``source``, each ordered token's place in the batch."""

    order: Int64s  # [num_seqs]
    source: Int64s  # [num_tokens]
    last: Int64s  # [num_seqs], rows of token_ids
    token_ids: Int32s  # [padded num_tokens]
    paged: PagedBatch


def decodes_first(
    batch: Batch, table: Int32s, last_token: Int32s, padded: Callable[[int], int]
) -> Ordered:
    """Reorder (a batch of one kind keeps its order), resolve ``NO_TOKEN``, pad.

    table : the block table ``[rows, max_blocks]``, shared, not copied. last_token : ``[slots]``.
    padded : the row count that a token count is padded to.
    """
    arranged = arrange(batch)
    order, seq, source = arranged.order, arranged.seq, arranged.source
    query_start = arranged.query_start
    length = padded(len(seq))
    given = batch.token_ids[source]
    token_ids = np.where(given == NO_TOKEN, last_token[batch.slots[seq]], given)
    positions = _pad(batch.positions[source], length)
    last = query_start[1:].astype(np.int64) - 1
    paged = PagedBatch(
        block_table=torch.from_numpy(table),
        positions=torch.from_numpy(positions),
        token_rows=torch.from_numpy(_pad(batch.rows[seq], length)),
        seq_rows=torch.from_numpy(batch.rows[order]),
        query_start=torch.from_numpy(query_start),
        context_lens=torch.from_numpy(positions[last] + 1),
        num_decodes=arranged.num_decodes,
    )
    return Ordered(order, source, last, _pad(token_ids, length), paged)


def _pad(values: Int32s, length: int) -> Int32s:
    padded = np.zeros(length, np.int32)
    padded[: len(values)] = values
    return padded
