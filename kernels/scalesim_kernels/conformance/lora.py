"""Random adapters in scattered pages whose other bytes are garbage, and tokens that use them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from ..contracts import LoraBatch, LoraDirectory, LoraSite
from ..lora_tiles import lora_tiles
from .paged import STALE, garbage

ALIGN = 64  # elements
NUM_LAYERS = 2
RANKS = ((1, 1, 1), (16, 0, 3), (0, 0, 0), (35, 5, 17), (8, 8, 8), (0, 0, 2))
"""Of the slices of six adapters, in layer 1; layer 0 has none."""


@dataclass(frozen=True)
class LoraCase:
    """``x`` ``[num_tokens, in]``, ``out`` ``[num_tokens, sum of widths]``; ``specified`` are the
    parts of h that the contract speaks of."""

    site: LoraSite
    lora: LoraBatch
    pool: Tensor
    x: Tensor
    out: Tensor
    specified: Tensor  # bool, as h


def make_lora_case(
    counts: tuple[int, ...], *, site: LoraSite, page_elems: int = 4096, seed: int = 0,
    multiple: int = 16, dtype: torch.dtype = torch.float32,
) -> LoraCase:  # fmt: skip
    """Group ``g`` is of ``counts[g]`` tokens and uses adapter ``g``. Some tokens use none."""
    rng = np.random.default_rng(seed)
    row_elems = max(256, site.in_width + ALIGN)  # of a row of A and the gap that it may leave
    num_pages = 4 + 2 * len(RANKS) + sum(map(sum, RANKS)) * 2 * row_elems // page_elems
    pool = garbage((num_pages, NUM_LAYERS, 2, 1, 16, page_elems // 64), seed, dtype)
    directory, table = scatter(pool, site, rng)
    room = [-(-count // multiple) * multiple for count in counts]
    starts = np.cumsum([0, *room])
    num_tokens = sum(counts) + 5
    order = rng.permutation(num_tokens)
    tokens, used = np.zeros(starts[-1], np.int32), 0
    for start, size, count in zip(starts[:-1], room, counts, strict=True):
        tokens[start : start + size] = order[used]
        tokens[start : start + count] = order[used : used + count]
        used += count
    rows = np.arange(1, len(counts) + 1)

    def int32(values: object) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.int32))

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape, np.float32)).to(dtype)

    tiles = lora_tiles(starts[:-1], counts, rows, rows - 1)
    lora = LoraBatch(directory, table, *map(int32, (tokens, starts, counts, rows, rows - 1, tiles)))
    case = LoraCase(
        site, lora, pool, normal(num_tokens, site.in_width),
        normal(num_tokens, sum(site.out_widths)), torch.zeros(()),
    )  # fmt: skip
    return replace(case, specified=specified(case))


def scatter(pool: Tensor, site: LoraSite, rng: np.random.Generator) -> tuple[LoraDirectory, Tensor]:
    """Write every adapter's rank rows, random, into pages of ``pool``; where they are."""
    flat = pool.view(len(pool), -1)
    page_elems, free = flat.shape[1], rng.permutation(np.arange(1, len(flat))).tolist()
    max_rank = max(map(max, RANKS))
    table = np.full((len(RANKS) + 2, 200), STALE, np.int64)
    a_at = np.full((len(RANKS), NUM_LAYERS, 7, max_rank), STALE, np.int64)
    b_at, ranks = a_at.copy(), np.zeros((len(RANKS), NUM_LAYERS, 7), np.int32)
    scales = rng.uniform(0.5, 2, ranks.shape).astype(np.float32)
    for layout, of_slices in enumerate(RANKS):
        end = 0
        for i, width_out in enumerate(site.out_widths):
            where = site.first_slice + i
            ranks[layout, 1, where] = of_slices[i]
            for starts, width in ((a_at, site.in_width), (b_at, width_out)):
                for j in range(of_slices[i]):
                    stride = -(-width // ALIGN) * ALIGN
                    if end % page_elems + stride > page_elems:
                        end += page_elems - end % page_elems
                    starts[layout, 1, where, j] = end
                    block, offset = divmod(end, page_elems)
                    if table[layout + 1, block] == STALE:
                        table[layout + 1, block] = free.pop()
                    row = rng.standard_normal(width, np.float32) * width**-0.5
                    page = flat[table[layout + 1, block]]
                    page[offset : offset + width] = torch.from_numpy(row).to(pool.dtype)
                    end += stride
    arrays = (torch.from_numpy(array) for array in (a_at, b_at, ranks, scales))
    return LoraDirectory(*arrays), torch.from_numpy(table.astype(np.int32))


def specified(case: LoraCase) -> Tensor:
    lora = case.lora
    max_rank = lora.directory.a_offsets.shape[3]
    mask = torch.zeros((len(lora.tokens), case.site.num_slices, max_rank), dtype=torch.bool)
    for start, count, layout in zip(
        lora.starts.tolist()[:-1], lora.counts.tolist(), lora.layouts.tolist(), strict=True
    ):
        for i in range(case.site.num_slices):
            mask[start : start + count, i, : RANKS[layout][i]] = True
    return mask


def lora_on(lora: LoraBatch, device: torch.device) -> LoraBatch:
    directory = LoraDirectory(
        *(getattr(lora.directory, field.name).to(device) for field in fields(LoraDirectory))
    )
    names = ("block_table", "tokens", "starts", "counts", "rows", "layouts", "tiles")
    moved = {name: getattr(lora, name).to(device) for name in names}
    return replace(lora, directory=directory, **moved)
