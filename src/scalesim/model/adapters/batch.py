"""Grouping of a step's tokens by adapter, for the arrays of a ``LoraBatch``.

Index arithmetic in numpy, once per step. Used by both runners.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass

import numpy as np
import torch
from scalesim_kernels import LoraBatch
from scalesim_kernels.lora_tiles import lora_tiles
from torch import Tensor

from scalesim.batch_options import AttachmentBatch
from scalesim.core import Int32s
from scalesim.model.adapters.layout import LayoutTable
from scalesim.model.runner.arrange import Arranged


@dataclass(frozen=True, slots=True)
class Grouped:
    """The arrays of a ``LoraBatch``, with its names and in its order."""

    tokens: Int32s
    starts: Int32s
    counts: Int32s
    rows: Int32s
    layouts: Int32s
    tiles: Int32s


def grouped(
    adapters: AttachmentBatch, arranged: Arranged, padded: Callable[[int], int]
) -> Grouped | None:
    """The tokens that use an adapter (those at or past their sequence's ``starts``), grouped;
    ``None`` if there are none.

    padded : the number of rows for a group's number of tokens.
    """
    seq = arranged.seq
    in_force = (adapters.rows[seq] != 0) & (arranged.positions >= adapters.starts[seq])
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
    layouts = adapters.layouts[seq[tokens[first]]]
    return Grouped(
        tokens[source].astype(np.int32),
        starts,
        sizes.astype(np.int32),
        group_rows.astype(np.int32),
        layouts.astype(np.int32),
        lora_tiles(starts[:-1], sizes, group_rows, layouts),
    )


def lora_batch(
    adapters: AttachmentBatch, arranged: Arranged, block_table: Tensor, layouts: LayoutTable,
    padded: Callable[[int], int],
) -> LoraBatch | None:  # fmt: skip
    """``grouped`` as the kernels' ``LoraBatch``, on a CPU."""
    found = grouped(adapters, arranged, padded)
    if found is None:
        return None
    return LoraBatch(layouts.directory(), block_table, *map(torch.from_numpy, astuple(found)))
