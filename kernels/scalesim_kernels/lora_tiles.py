"""Tiles of a step's adapters: which tokens a program of a LoRA kernel computes.

The host makes the list once a step, for all layers and projections: a program finds its tile by its
own number, and its weights in two loads after that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Int32s: TypeAlias = npt.NDArray[np.int32]

LORA_TILE = 16  # entries: the fewest rows of a tensor core's product


def tile_capacity(num_entries: int, num_groups: int) -> int:
    """The most tiles that so many entries in so many groups have."""
    return min(num_entries, num_entries // LORA_TILE + num_groups)


def lora_tiles(starts: Any, counts: Any, rows: Any, layouts: Any) -> Int32s:
    """``LoraBatch.tiles`` of groups with these arrays, each of which numpy can read."""
    starts, counts, rows, layouts = map(np.asarray, (starts, counts, rows, layouts))
    num_tiles = np.where(rows == 0, 0, -(-counts // LORA_TILE))
    group = np.repeat(np.arange(len(counts)), num_tiles)
    number = np.arange(len(group)) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)
    first = number * LORA_TILE
    columns = (rows[group], layouts[group], starts[group] + first, counts[group] - first)
    tiles = np.stack(columns, axis=1).astype(np.int32)
    np.minimum(tiles[:, 3], LORA_TILE, out=tiles[:, 3])
    return tiles
