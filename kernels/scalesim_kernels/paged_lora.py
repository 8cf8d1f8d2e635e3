"""LoRA over pages: rank rows are read from the pages, at each adapter's own rank.

A program computes 16 tokens of one adapter. It finds its group by a prefix sum of the groups' tile
counts, so the host need not read anything back to choose a grid. Rank rows are gathered by their
own offsets: 16 of them make one tile of a tensor core, wherever pages end. References:
``reference.lora_shrink`` and ``reference.lora_expand``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .contracts import LoraBatch, LoraSite
from .launch import Launch, check, is_wide, next_power_of_2

# What changes from step to step must compile nothing.
SIZES = ["layer", "num_layers", "num_groups", "table_stride", "max_rank"]
INDICES = ["table", "tokens", "starts", "counts", "rows", "layouts", "offsets", "ranks"]
GROUPS = 256
ROWS = 16  # tokens of a program, and rank rows of a product: the least that ``tl.dot`` takes


def shrink_launch(dtype: torch.dtype) -> Launch:
    """The launch settings of ``shrink_kernel``. There are few programs, one or two a processor:
    many tiles must be under way in each to keep memory busy."""
    return Launch(tile=64 if is_wide(dtype) else 128, num_warps=4, num_stages=6)


def expand_launch(dtype: torch.dtype) -> Launch:
    """The launch settings of ``expand_kernel``. Before its first weights a program follows six
    loads, each through the last: its columns must be worth that."""
    return Launch(tile=128 if is_wide(dtype) else 512, num_warps=8, num_stages=2)


@triton.jit
def find_group(counts, num_groups, tile, GROUPS: tl.constexpr, BLOCK_M: tl.constexpr):
    """(group of a tile of BLOCK_M tokens, the tile's number in it); past the last: num_groups."""
    index = tl.arange(0, GROUPS)
    count = tl.load(counts + index, mask=index < num_groups, other=0)
    tiles = (count + BLOCK_M - 1) // BLOCK_M
    ends = tl.cumsum(tiles, 0)
    group = tl.sum((ends <= tile).to(tl.int32), 0)
    before = tl.sum(tl.where(index < group, tiles, 0), 0)
    return group, tile - before


@triton.jit
def row_bases(offsets, table_row, rank_row, inside, page_elems):
    """Where rank rows begin in the pool. Multiples of 64 elements, which makes loads wide ones."""
    offset = tl.load(offsets + rank_row, mask=inside, other=0)
    page = tl.load(table_row + offset // page_elems, mask=inside, other=0).to(tl.int64)
    return tl.multiple_of(page * page_elems + offset % page_elems, 64)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=[*INDICES, "scales"])
def shrink_kernel(
    x,  # [num_tokens, WIDTH], C-contiguous
    pool,  # elements, flat
    h,  # [entries of tokens, SLICES, max_rank] fp32
    table, table_stride,  # [num_rows, table_stride] int32
    tokens,  # [entries] int32
    starts, counts, rows, layouts,  # [num_groups (+ 1)] int32
    offsets,  # [num_layouts, num_layers, 7, max_rank] int64
    ranks, scales,  # [num_layouts, num_layers, 7] int32, fp32
    layer, num_layers, num_groups, max_rank, page_elems,
    FIRST: tl.constexpr, SLICES: tl.constexpr,
    WIDTH: tl.constexpr, GROUPS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid ``(tiles of tokens, SLICES * ceil(max_rank / BLOCK_R))``."""
    group, tile = find_group(counts, num_groups, tl.program_id(0), GROUPS, BLOCK_M)
    if group >= num_groups:
        return
    row = tl.load(rows + group)
    if row == 0:
        return
    chunks = tl.cdiv(max_rank, BLOCK_R)
    part = tl.program_id(1) // chunks
    where = (tl.load(layouts + group) * num_layers + layer) * 7 + FIRST + part
    rank = tl.load(ranks + where)
    first_rank = tl.program_id(1) % chunks * BLOCK_R
    if first_rank >= rank:
        return
    entry = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    real = entry < tl.load(counts + group)
    entry += tl.load(starts + group)
    token = tl.load(tokens + entry, mask=real, other=0).to(tl.int64)
    rank_row = first_rank + tl.arange(0, BLOCK_R)
    inside = rank_row < rank
    table_row = table + row.to(tl.int64) * table_stride
    base = row_bases(
        offsets + where.to(tl.int64) * max_rank, table_row, rank_row, inside, page_elems
    )
    k = tl.arange(0, BLOCK_K)
    x_tile = x + token[:, None] * WIDTH + k[None, :]
    a_tile = pool + base[None, :] + k[:, None]
    acc = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for start in tl.range(0, WIDTH, BLOCK_K, num_stages=STAGES):
        near = k < WIDTH - start
        some = tl.load(x_tile + start, mask=real[:, None] & near[None, :], other=0.0)
        a = tl.load(a_tile + start, mask=inside[None, :] & near[:, None], other=0.0)
        acc = tl.dot(some, a, acc, input_precision="ieee")
    acc = acc * tl.load(scales + where)
    target = h + (entry.to(tl.int64)[:, None] * SLICES + part) * max_rank + rank_row[None, :]
    tl.store(target, acc, mask=real[:, None] & inside[None, :])


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=INDICES)
def expand_kernel(
    h, pool, out,  # out: [num_tokens, WIDTH0 + WIDTH1 + WIDTH2], C-contiguous
    table, table_stride, tokens, starts, counts, rows, layouts, offsets, ranks,  # as in shrink
    layer, num_layers, num_groups, max_rank, page_elems,
    FIRST: tl.constexpr, SLICES: tl.constexpr,
    WIDTH0: tl.constexpr, WIDTH1: tl.constexpr, WIDTH2: tl.constexpr,
    GROUPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Grid ``(tiles of tokens, blocks of BLOCK_N columns of each slice, one after the other)``."""
    group, tile = find_group(counts, num_groups, tl.program_id(0), GROUPS, BLOCK_M)
    if group >= num_groups:
        return
    row = tl.load(rows + group)
    if row == 0:
        return
    blocks0: tl.constexpr = (WIDTH0 + BLOCK_N - 1) // BLOCK_N
    blocks1: tl.constexpr = (WIDTH1 + BLOCK_N - 1) // BLOCK_N
    block = tl.program_id(1)
    part = (block >= blocks0).to(tl.int32) + (block >= blocks0 + blocks1).to(tl.int32)
    block -= tl.where(part > 0, blocks0, 0) + tl.where(part > 1, blocks1, 0)
    width = tl.where(part == 0, WIDTH0, tl.where(part == 1, WIDTH1, WIDTH2))
    first_column = tl.where(part > 0, WIDTH0, 0) + tl.where(part > 1, WIDTH1, 0)
    where = (tl.load(layouts + group) * num_layers + layer) * 7 + FIRST + part
    rank = tl.load(ranks + where)
    if rank == 0:
        return
    entry = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    real = entry < tl.load(counts + group)
    entry += tl.load(starts + group)
    token = tl.load(tokens + entry, mask=real, other=0).to(tl.int64)
    column = block * BLOCK_N + tl.arange(0, BLOCK_N)
    near = column < width
    table_row = table + row.to(tl.int64) * table_stride
    h_tile = h + (entry.to(tl.int64)[:, None] * SLICES + part) * max_rank
    chunk = tl.arange(0, BLOCK_R)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first_rank in tl.range(0, rank, BLOCK_R, num_stages=STAGES):
        rank_row = first_rank + chunk
        inside = rank_row < rank
        base = row_bases(
            offsets + where.to(tl.int64) * max_rank, table_row, rank_row, inside, page_elems
        )
        b = tl.load(
            pool + base[:, None] + column[None, :], mask=inside[:, None] & near[None, :], other=0.0
        )
        some = tl.load(h_tile + rank_row[None, :], mask=real[:, None] & inside[None, :], other=0.0)
        acc = tl.dot(some.to(b.dtype), b, acc, input_precision="ieee")
    target = out + token[:, None] * (WIDTH0 + WIDTH1 + WIDTH2) + first_column + column[None, :]
    mask = real[:, None] & near[None, :]
    sum = tl.load(target, mask=mask, other=0.0).to(tl.float32) + acc
    tl.store(target, sum.to(out.dtype.element_ty), mask=mask)


def tiles_of(lora: LoraBatch) -> int:
    """An upper bound of the number of token tiles of all groups."""
    return len(lora.tokens) // ROWS + len(lora.rows)


def groups_of(lora: LoraBatch) -> int:
    """The number of groups that a kernel is compiled for: the same for up to 256 groups."""
    return max(GROUPS, next_power_of_2(len(lora.rows)))


def lora_shrink(x: Tensor, pool: Tensor, layer: int, site: LoraSite, lora: LoraBatch) -> Tensor:
    """See ``contracts.LoraShrink``."""
    directory = lora.directory
    num_layers, max_rank = directory.a_offsets.shape[1], directory.a_offsets.shape[3]
    check(
        x.is_contiguous() and x.shape[1] == site.in_width,
        f"x {tuple(x.shape)}; it must be C-contiguous and {site.in_width} wide",
    )
    h = torch.empty(
        (len(lora.tokens), site.num_slices, max_rank), dtype=torch.float32, device=x.device
    )
    launch = shrink_launch(pool.dtype)
    grid = (tiles_of(lora), site.num_slices * -(-max_rank // ROWS))
    shrink_kernel[grid](
        x, pool, h, lora.block_table, lora.block_table.stride(0), lora.tokens, lora.starts,
        lora.counts, lora.rows, lora.layouts, directory.a_offsets, directory.ranks,
        directory.scales, layer, num_layers, len(lora.rows), max_rank, pool[0].numel(),
        site.first_slice, site.num_slices, site.in_width, groups_of(lora), ROWS, ROWS,
        launch.tile, launch.num_stages, **launch.options(),
    )  # fmt: skip
    return h


def lora_expand(
    h: Tensor, pool: Tensor, layer: int, site: LoraSite, lora: LoraBatch, out: Tensor
) -> None:
    """See ``contracts.LoraExpand``."""
    directory = lora.directory
    num_layers, max_rank = directory.b_offsets.shape[1], directory.b_offsets.shape[3]
    check(
        out.is_contiguous() and out.shape[1] == sum(site.out_widths),
        f"out {tuple(out.shape)}; it must be C-contiguous and {sum(site.out_widths)} wide",
    )
    launch = expand_launch(pool.dtype)
    widths = (*site.out_widths, 0, 0)[:3]
    grid = (tiles_of(lora), sum(-(-width // launch.tile) for width in site.out_widths))
    expand_kernel[grid](
        h, pool, out, lora.block_table, lora.block_table.stride(0), lora.tokens, lora.starts,
        lora.counts, lora.rows, lora.layouts, directory.b_offsets, directory.ranks, layer,
        num_layers, len(lora.rows), max_rank, pool[0].numel(), site.first_slice, site.num_slices,
        *widths, groups_of(lora), ROWS, ROWS, launch.tile, launch.num_stages, **launch.options(),
    )  # fmt: skip
