"""LoRA over pages: rank rows are read from the pages, at each adapter's own rank.

A program computes 16 tokens of one adapter, a tile of the step's list. Rank rows are gathered by
their own offsets: 16 of them make one tile of a tensor core, wherever pages end. Shrink cuts a wide
input into parts of a fixed width, a program each, since there are few programs otherwise; expand
adds the parts in their order, so that bits follow from the width alone. References:
``reference.lora_shrink`` and ``reference.lora_expand``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .contracts import LoraBatch, LoraSite
from .launch import Launch, check, is_wide
from .lora_tiles import LORA_TILE

# What changes from step to step must compile nothing.
SIZES = ["layer", "num_layers", "table_stride", "max_rank", "part_stride"]
INDICES = ["table", "tokens", "tiles", "offsets", "ranks"]
RANK_TILE = 16  # rank rows of a product: the least that ``tl.dot`` takes
PART, MAX_PARTS = 1024, 8  # columns of the input that are worth a program
# Columns of the output that are: before its first weights a program follows three loads, each
# through the last.
COLUMNS = 512


def shrink_launch(dtype: torch.dtype) -> Launch:
    """The launch settings of ``shrink_kernel``. There are a few programs a processor: many tiles
    must be under way in each to keep memory busy."""
    return Launch(tile=64 if is_wide(dtype) else 128, num_warps=4, num_stages=5)


def expand_launch(dtype: torch.dtype) -> Launch:
    """The launch settings of ``expand_kernel``, for which ``tile`` columns are a block of those
    that a program computes."""
    return Launch(tile=64 if is_wide(dtype) else 128, num_warps=4, num_stages=4)


def part_of(width: int) -> int:
    """The columns of a part of an input of ``width``: a multiple of every tile."""
    count = max(1, min(MAX_PARTS, width // PART))
    return -(-width // (128 * count)) * 128


@triton.jit
def read_tile(tiles, number):
    """(row, layout, first entry, number of entries) of a tile."""
    tile = tiles + 4 * number
    return tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)


@triton.jit
def row_bases(offsets, table_row, rank_row, rank, max_rank, page_elems):
    """Where rank rows begin in the pool. Multiples of 64 elements, which makes loads wide ones.
    Offsets past the rank are loaded too, and not used: their load need not wait for the rank."""
    offset = tl.load(offsets + rank_row, mask=rank_row < max_rank, other=0)
    inside = rank_row < rank
    page = tl.load(table_row + offset // page_elems, mask=inside, other=0).to(tl.int64)
    return tl.multiple_of(page * page_elems + offset % page_elems, 64)


@triton.jit
def sum_of_parts(h_at, mask, part_stride, PARTS: tl.constexpr):
    """A tile of ``h``, its partial sums added in their order."""
    total = tl.load(h_at, mask=mask, other=0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(h_at + part * part_stride.to(tl.int64), mask=mask, other=0.0)
    return total


@triton.jit
def add_to(target, acc, mask):
    """Add ``acc`` to the elements of the output, rounded once."""
    total = tl.load(target, mask=mask, other=0.0).to(tl.float32) + acc
    tl.store(target, total.to(target.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=[*INDICES, "scales"])
def shrink_kernel(
    x,  # [num_tokens, WIDTH], C-contiguous
    pool,  # elements, flat
    h,  # [entries of tokens, SLICES, max_rank] fp32
    table, table_stride,  # [num_rows, table_stride] int32
    tokens,  # [entries] int32
    tiles,  # [num_tiles, 4] int32
    offsets,  # [num_layouts, num_layers, 7, max_rank] int64
    ranks, scales,  # [num_layouts, num_layers, 7] int32, fp32
    layer, num_layers, max_rank, page_elems, part_stride,
    FIRST: tl.constexpr, SLICES: tl.constexpr,
    WIDTH: tl.constexpr, PART: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid ``(tiles, SLICES * ceil(max_rank / BLOCK_R), parts of the input)``; partial sums are
    ``part_stride`` elements of ``h`` apart."""
    row, layout, first, count = read_tile(tiles, tl.program_id(0))
    if row == 0:
        return
    chunks = tl.cdiv(max_rank, BLOCK_R)
    index = tl.program_id(1) // chunks
    where = (layout * num_layers + layer) * 7 + FIRST + index
    rank = tl.load(ranks + where)
    rank_row = tl.program_id(1) % chunks * BLOCK_R + tl.arange(0, BLOCK_R)
    table_row = table + row.to(tl.int64) * table_stride
    own_offsets = offsets + where.to(tl.int64) * max_rank
    base = row_bases(own_offsets, table_row, rank_row, rank, max_rank, page_elems)
    if tl.program_id(1) % chunks * BLOCK_R >= rank:
        return
    inside = rank_row < rank
    entry = tl.arange(0, BLOCK_M)
    real = entry < count
    entry += first
    token = tl.load(tokens + entry, mask=real, other=0).to(tl.int64)
    begin = tl.program_id(2) * PART
    k = tl.arange(0, BLOCK_K)
    x_tile = x + token[:, None] * WIDTH + k[None, :]
    a_tile = pool + base[None, :] + k[:, None]
    acc = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for start in tl.range(begin, tl.minimum(begin + PART, WIDTH), BLOCK_K, num_stages=STAGES):
        near = k < WIDTH - start
        some = tl.load(x_tile + start, mask=real[:, None] & near[None, :], other=0.0)
        a = tl.load(a_tile + start, mask=inside[None, :] & near[:, None], other=0.0)
        acc = tl.dot(some, a, acc, input_precision="ieee")
    acc = acc * tl.load(scales + where)
    target = h + (entry.to(tl.int64)[:, None] * SLICES + index) * max_rank + rank_row[None, :]
    target += tl.program_id(2).to(tl.int64) * part_stride
    tl.store(target, acc, mask=real[:, None] & inside[None, :])


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=INDICES)
def expand_kernel(
    h, pool, out,  # out: [num_tokens, WIDTH0 + WIDTH1 + WIDTH2], C-contiguous
    table, table_stride, tokens, tiles, offsets, ranks,  # as in shrink
    layer, num_layers, max_rank, page_elems, part_stride,
    FIRST: tl.constexpr, SLICES: tl.constexpr,
    WIDTH0: tl.constexpr, WIDTH1: tl.constexpr, WIDTH2: tl.constexpr,
    PARTS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid ``(tiles, blocks of COLUMNS columns of each slice, one after the other)``. Up to BLOCK_R
    rank rows are found once, and their columns read ahead."""
    row, layout, first, count = read_tile(tiles, tl.program_id(0))
    if row == 0:
        return
    blocks0: tl.constexpr = (WIDTH0 + COLUMNS - 1) // COLUMNS
    blocks1: tl.constexpr = (WIDTH1 + COLUMNS - 1) // COLUMNS
    block = tl.program_id(1)
    index = (block >= blocks0).to(tl.int32) + (block >= blocks0 + blocks1).to(tl.int32)
    block -= tl.where(index > 0, blocks0, 0) + tl.where(index > 1, blocks1, 0)
    width = tl.where(index == 0, WIDTH0, tl.where(index == 1, WIDTH1, WIDTH2))
    first_column = tl.where(index > 0, WIDTH0, 0) + tl.where(index > 1, WIDTH1, 0)
    where = (layout * num_layers + layer) * 7 + FIRST + index
    rank = tl.load(ranks + where)
    if rank == 0:
        return
    entry = tl.arange(0, BLOCK_M)
    real = entry < count
    entry += first
    token = tl.load(tokens + entry, mask=real, other=0).to(tl.int64)
    column = tl.arange(0, BLOCK_N)
    begin = block * COLUMNS
    end = tl.minimum(begin + COLUMNS, width)
    out_row = out + token * (WIDTH0 + WIDTH1 + WIDTH2) + first_column
    table_row = table + row.to(tl.int64) * table_stride
    own_offsets = offsets + where.to(tl.int64) * max_rank
    h_tile = h + (entry.to(tl.int64)[:, None] * SLICES + index) * max_rank
    rank_row = tl.arange(0, BLOCK_R)
    if rank <= BLOCK_R:
        inside = rank_row < rank
        base = row_bases(own_offsets, table_row, rank_row, rank, max_rank, page_elems)
        given = real[:, None] & inside[None, :]
        some = sum_of_parts(h_tile + rank_row[None, :], given, part_stride, PARTS)
        some = some.to(pool.dtype.element_ty)
        for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
            near = column < end - start
            b_at = pool + base[:, None] + start + column[None, :]
            b = tl.load(b_at, mask=inside[:, None] & near[None, :], other=0.0)
            acc = tl.dot(some, b, input_precision="ieee")
            target = out_row[:, None] + start + column[None, :]
            add_to(target, acc, real[:, None] & near[None, :])
    else:
        for start in tl.range(begin, end, BLOCK_N):
            near = column < end - start
            acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for first_rank in tl.range(0, rank, BLOCK_R, num_stages=1):
                chunk = first_rank + rank_row
                inside = chunk < rank
                base = row_bases(own_offsets, table_row, chunk, rank, max_rank, page_elems)
                b_at = pool + base[:, None] + start + column[None, :]
                b = tl.load(b_at, mask=inside[:, None] & near[None, :], other=0.0)
                given = real[:, None] & inside[None, :]
                some = sum_of_parts(h_tile + chunk[None, :], given, part_stride, PARTS)
                acc = tl.dot(some.to(b.dtype), b, acc, input_precision="ieee")
            target = out_row[:, None] + start + column[None, :]
            add_to(target, acc, real[:, None] & near[None, :])


def lora_shrink(x: Tensor, pool: Tensor, layer: int, site: LoraSite, lora: LoraBatch) -> Tensor:
    """See ``contracts.LoraShrink``: ``[parts, entries, slices, max_rank]``, partial sums."""
    directory = lora.directory
    num_layers, max_rank = directory.a_offsets.shape[1], directory.a_offsets.shape[3]
    check(
        x.is_contiguous() and x.shape[1] == site.in_width,
        f"x {tuple(x.shape)}; it must be C-contiguous and {site.in_width} wide",
    )
    part = part_of(site.in_width)
    parts = -(-site.in_width // part)
    h = torch.empty(
        (parts, len(lora.tokens), site.num_slices, max_rank), dtype=torch.float32, device=x.device
    )
    launch = shrink_launch(pool.dtype)
    grid = (len(lora.tiles), site.num_slices * -(-max_rank // RANK_TILE), parts)
    shrink_kernel[grid](
        x, pool, h, lora.block_table, lora.block_table.stride(0), lora.tokens, lora.tiles,
        directory.a_offsets, directory.ranks, directory.scales, layer, num_layers, max_rank,
        pool.stride(0), h.stride(0), site.first_slice, site.num_slices, site.in_width, part,
        LORA_TILE, RANK_TILE, launch.tile, launch.num_stages, **launch.options(),
    )  # fmt: skip
    return h


def lora_expand(
    h: Tensor, pool: Tensor, layer: int, site: LoraSite, lora: LoraBatch, out: Tensor
) -> None:
    """See ``contracts.LoraExpand``. ``h`` with or without the dimension of parts."""
    directory = lora.directory
    num_layers, max_rank = directory.b_offsets.shape[1], directory.b_offsets.shape[3]
    check(
        out.is_contiguous() and out.shape[1] == sum(site.out_widths),
        f"out {tuple(out.shape)}; it must be C-contiguous and {sum(site.out_widths)} wide",
    )
    parts = h.view(-1, len(lora.tokens), site.num_slices, max_rank)
    launch = expand_launch(pool.dtype)
    widths = (*site.out_widths, 0, 0)[:3]
    grid = (len(lora.tiles), sum(-(-width // COLUMNS) for width in site.out_widths))
    expand_kernel[grid](
        parts, pool, out, lora.block_table, lora.block_table.stride(0), lora.tokens, lora.tiles,
        directory.b_offsets, directory.ranks, layer, num_layers, max_rank, pool.stride(0),
        parts.stride(0), site.first_slice, site.num_slices, *widths, len(parts), COLUMNS,
        LORA_TILE, RANK_TILE, launch.tile, launch.num_stages, **launch.options(),
    )  # fmt: skip
