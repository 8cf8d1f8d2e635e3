"""A step's tokens grouped by adapter: from a ``Batch``'s adapters to the kernels' ``LoraBatch``.

Index arithmetic in numpy, once per step; called by ``ModelRunner``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scalesim_kernels import LoraBatch

from scalesim.core import AdapterBatch
from scalesim.model.adapters.layout import LayoutTable
from scalesim.model.decodes_first import Ordered


def lora_batch(
    adapters: AdapterBatch, ordered: Ordered, layouts: LayoutTable, padded: Callable[[int], int]
) -> LoraBatch | None:
    """The tokens at or past their sequence's ``starts``; ``None`` where there is none.

    padded : the row count that a group's token count is padded to.
    """
    paged = ordered.paged
    counts = np.diff(paged.query_start.numpy())
    seq = np.repeat(ordered.order, counts)
    in_force = (adapters.rows[seq] != 0) & (
        paged.positions.numpy()[: len(seq)] >= adapters.starts[seq]
    )
    tokens = np.flatnonzero(in_force)
    if not len(tokens):
        return None
    rows = adapters.rows[seq[tokens]]
    by_row = np.argsort(rows, kind="stable")
    tokens = tokens[by_row]
    group_rows, first, sizes = np.unique(rows[by_row], return_index=True, return_counts=True)
    room = np.array([padded(size) for size in sizes.tolist()])
    starts = np.zeros(len(sizes) + 1, np.int32)
    np.cumsum(room, out=starts[1:])
    # padding repeats the group's first token
    place = np.arange(starts[-1]) - np.repeat(starts[:-1], room)
    source = np.repeat(first, room) + np.where(place < np.repeat(sizes, room), place, 0)
    return LoraBatch(
        layouts.directory(),
        paged.block_table,
        torch.from_numpy(tokens[source].astype(np.int32)),
        torch.from_numpy(starts),
        torch.from_numpy(sizes.astype(np.int32)),
        torch.from_numpy(group_rows.astype(np.int32)),
        torch.from_numpy(adapters.layouts[seq[tokens[first]]].astype(np.int32)),
    )
