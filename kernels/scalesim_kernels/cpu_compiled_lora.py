"""LoRA of the CPU set, compiled by numba: all adapters of a step in one job, their rank rows read
where they lie in the pages; in fp32. See ``cpu_compiled``.

An item is one projection of one tile: up to 16 tokens of an adapter. What is computed for a token
follows from its own row and from its adapter, in the order of the source.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from . import cpu_lora
from .contracts import LoraBatch, LoraSite
from .cpu_kernel import job, kernel
from .cpu_lanes import (
    WIDTH,
    add,
    fill,
    floats,
    fma,
    ints,
    lane,
    load,
    longs,
    multiply,
    store,
    sums,
    take_next,
)
from .cpu_team import run

SLICES = 7  # projections of a layer
SMALL = 1 << 17  # multiplications: fewer are done before a team is awake
NO_FLOAT = np.float32(0)

LoraJob = job(
    "LoraJob",
    "x out h pool pool_size page_elems table table_size max_blocks tokens num_entries tiles "
    "num_tiles offsets ranks scales num_wheres first_where num_layers max_rank num_slices "
    "in_width width_0 width_1 width_2 num_tokens",
)


@njit(inline="always")
def find_rows(
    found: Any, offsets: Any, first: int, count: int, table: Any, table_at: int, page_elems: int
) -> None:
    """Where in the pool ``count`` rank rows begin, whose offsets in the adapter stand from
    ``first`` on."""
    for j in range(count):
        offset = offsets[first + j]
        page = np.int64(table[table_at + offset // page_elems])
        found[j] = page * page_elems + offset % page_elems


@kernel(LoraJob)
def shrink(pointer: Any) -> None:
    """``h = scale * A @ x``, eight rank rows at a time; where fewer are left, the last one takes
    the place of those that there are not."""
    job = carray(pointer, 1)[0]
    width, max_rank, num_slices = job.in_width, job.max_rank, job.num_slices
    x = carray(floats(job.x), job.num_tokens * width)
    h = carray(floats(job.h), job.num_entries * num_slices * max_rank)
    pool = carray(floats(job.pool), job.pool_size)
    table = carray(ints(job.table), job.table_size)
    tokens = carray(ints(job.tokens), job.num_entries)
    tiles = carray(ints(job.tiles), (job.num_tiles, 4))
    offsets = carray(longs(job.offsets), job.num_wheres * max_rank)
    ranks = carray(ints(job.ranks), job.num_wheres)
    scales = carray(floats(job.scales), job.num_wheres)
    rows = np.empty(max_rank + WIDTH, np.int64)
    while True:
        index = take_next(pointer)
        if index >= job.num_items:
            return
        tile, part = tiles[index // num_slices], index % num_slices
        where = tile[1] * job.num_layers * SLICES + job.first_where + part
        rank = ranks[where]
        if tile[0] == 0 or rank == 0:
            continue
        find_rows(rows, offsets, where * max_rank, rank, table, tile[0] * job.max_blocks,
                  job.page_elems)  # fmt: skip
        rows[rank : rank + WIDTH] = rows[rank - 1]
        scale = fill(scales[where])
        for entry in range(tile[2], tile[2] + tile[3]):
            x_at, h_at = np.int64(tokens[entry]) * width, (entry * num_slices + part) * max_rank
            for j in range(0, rank, WIDTH):
                ra, rb, rc, rd = rows[j], rows[j + 1], rows[j + 2], rows[j + 3]
                re, rf, rg, rh = rows[j + 4], rows[j + 5], rows[j + 6], rows[j + 7]
                a = b = c = d = e = f = g = k = fill(NO_FLOAT)
                for i in range(0, width, WIDTH):
                    value = load(x, x_at + i)
                    a = fma(value, load(pool, ra + i), a)
                    b = fma(value, load(pool, rb + i), b)
                    c = fma(value, load(pool, rc + i), c)
                    d = fma(value, load(pool, rd + i), d)
                    e = fma(value, load(pool, re + i), e)
                    f = fma(value, load(pool, rf + i), f)
                    g = fma(value, load(pool, rg + i), g)
                    k = fma(value, load(pool, rh + i), k)
                found = multiply(scale, sums(a, b, c, d, e, f, g, k))
                if j + WIDTH <= max_rank:
                    store(h, h_at + j, found)
                else:
                    for each in range(rank - j):
                        h[h_at + j + each] = lane(found, each)


@kernel(LoraJob)
def expand(pointer: Any) -> None:
    """``out += h @ B``: the products of a column are added up in the order of the rank, then to the
    output."""
    job = carray(pointer, 1)[0]
    max_rank, num_slices = job.max_rank, job.num_slices
    out_width = job.width_0 + job.width_1 + job.width_2
    out = carray(floats(job.out), job.num_tokens * out_width)
    h = carray(floats(job.h), job.num_entries * num_slices * max_rank)
    pool = carray(floats(job.pool), job.pool_size)
    table = carray(ints(job.table), job.table_size)
    tokens = carray(ints(job.tokens), job.num_entries)
    tiles = carray(ints(job.tiles), (job.num_tiles, 4))
    offsets = carray(longs(job.offsets), job.num_wheres * max_rank)
    ranks = carray(ints(job.ranks), job.num_wheres)
    rows = np.empty(max_rank, np.int64)
    while True:
        index = take_next(pointer)
        if index >= job.num_items:
            return
        tile, part = tiles[index // num_slices], index % num_slices
        where = tile[1] * job.num_layers * SLICES + job.first_where + part
        rank = ranks[where]
        if tile[0] == 0 or rank == 0:
            continue
        find_rows(rows, offsets, where * max_rank, rank, table, tile[0] * job.max_blocks,
                  job.page_elems)  # fmt: skip
        first, width = 0, job.width_0
        if part == 1:
            first, width = job.width_0, job.width_1
        elif part == 2:
            first, width = job.width_0 + job.width_1, job.width_2
        for entry in range(tile[2], tile[2] + tile[3]):
            o_at = np.int64(tokens[entry]) * out_width + first
            h_at, i = (entry * num_slices + part) * max_rank, 0
            while i + 8 * WIDTH <= width:
                a = b = c = d = e = f = g = k = fill(NO_FLOAT)
                for j in range(rank):
                    value, at = fill(h[h_at + j]), rows[j] + i
                    a = fma(value, load(pool, at), a)
                    b = fma(value, load(pool, at + 8), b)
                    c = fma(value, load(pool, at + 16), c)
                    d = fma(value, load(pool, at + 24), d)
                    e = fma(value, load(pool, at + 32), e)
                    f = fma(value, load(pool, at + 40), f)
                    g = fma(value, load(pool, at + 48), g)
                    k = fma(value, load(pool, at + 56), k)
                at = o_at + i
                store(out, at, add(load(out, at), a))
                store(out, at + 8, add(load(out, at + 8), b))
                store(out, at + 16, add(load(out, at + 16), c))
                store(out, at + 24, add(load(out, at + 24), d))
                store(out, at + 32, add(load(out, at + 32), e))
                store(out, at + 40, add(load(out, at + 40), f))
                store(out, at + 48, add(load(out, at + 48), g))
                store(out, at + 56, add(load(out, at + 56), k))
                i += 8 * WIDTH
            while i < width:
                a = fill(NO_FLOAT)
                for j in range(rank):
                    a = fma(fill(h[h_at + j]), load(pool, rows[j] + i), a)
                store(out, o_at + i, add(load(out, o_at + i), a))
                i += WIDTH


class CompiledLora:
    """``shrink`` and ``expand`` of the CPU set; by ``CpuLora`` in other dtypes than fp32 and for
    widths that are no multiple of eight."""

    def __init__(self) -> None:
        self._other = cpu_lora.CpuLora()

    def shrink(
        self, x: Tensor, pool: Tensor, layer: int, site: LoraSite, lora: LoraBatch
    ) -> Tensor:
        """See ``contracts.LoraShrink``."""
        if not takes(x, pool, site):
            return self._other.shrink(x, pool, layer, site, lora)
        max_rank = lora.directory.a_offsets.shape[3]
        h = torch.empty((len(lora.tokens), site.num_slices, max_rank))
        compute(shrink, x, None, h, pool, lora.directory.a_offsets, layer, site, lora)
        return h

    def expand(
        self, h: Tensor, pool: Tensor, layer: int, site: LoraSite, lora: LoraBatch, out: Tensor
    ) -> None:
        """See ``contracts.LoraExpand``."""
        if not takes(out, pool, site):
            self._other.expand(h, pool, layer, site, lora, out)
            return
        compute(expand, None, out, h, pool, lora.directory.b_offsets, layer, site, lora)


def takes(x: Tensor, pool: Tensor, site: LoraSite) -> bool:
    widths = (site.in_width, *site.out_widths)
    return x.dtype == pool.dtype == torch.float32 and not any(width % WIDTH for width in widths)


def compute(
    kernel: Any, x: Tensor | None, out: Tensor | None, h: Tensor, pool: Tensor, offsets: Tensor,
    layer: int, site: LoraSite, lora: LoraBatch,
) -> None:  # fmt: skip
    """Run ``shrink`` or ``expand`` on what it reads and writes."""
    directory, table, tiles = lora.directory, lora.block_table, lora.tiles
    rows = x if x is not None else out
    assert rows is not None
    num_layers = directory.ranks.shape[1]
    widths = (*site.out_widths, 0, 0)[:3]
    found = LoraJob(
        0, len(tiles) * site.num_slices,
        0 if x is None else x.data_ptr(), 0 if out is None else out.data_ptr(), h.data_ptr(),
        pool.data_ptr(), len(pool) * pool.stride(0), pool.stride(0),
        table.data_ptr(), table.numel(), table.shape[1],
        lora.tokens.data_ptr(), len(lora.tokens), tiles.data_ptr(), len(tiles),
        offsets.data_ptr(), directory.ranks.data_ptr(), directory.scales.data_ptr(),
        directory.ranks.numel(), layer * SLICES + site.first_slice, num_layers, offsets.shape[3],
        site.num_slices, site.in_width, *widths, len(rows),
    )  # fmt: skip
    run(kernel, found, len(tiles) > 1 and h.numel() * rows.shape[1] >= SMALL)
