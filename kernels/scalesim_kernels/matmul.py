"""Linear layers whose rows do not depend on the other rows, nor on how many there are.

Vendors' matmuls choose a kernel, and with it an order of summation, by the number of rows. Here the
order is a function of the weights' shape alone: the input's columns are cut into segments, the
products of a segment are added in the order of their columns by one instruction, and the segments
are added in their order. What depends on the number of rows is only who does this. Few rows: a
program a segment, so that the programs fill the device though there are few tiles, and a second
kernel adds the segments. Many rows: a program adds the segments itself, over a tile that is large
enough to keep tensor cores busy. Reference: ``reference.linear``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, capability, check, is_wide

FEW_ROWS = 64  # the height of Hopper's wgmma: up to here, weights bound the time, not rows
COLUMNS = 64  # of a tile with few rows
WANTED = 256  # programs of a launch with few rows: two for each processor of a large GPU
MAX_SEGMENTS, MIN_SEGMENT = 8, 512  # columns of the input
DEPTH = 64  # columns of the input that a tile takes at a time, for any number of rows
GROUP = 8  # row tiles that share a column tile of weights while it is in cache
ADD = Launch(tile=1024, num_warps=4)


@dataclass(frozen=True, slots=True)
class MatmulTile:
    """The output tile of a program, ``rows`` by ``columns``."""

    rows: int
    columns: int
    launch: Launch


def segment_of(width: int, num_out: int) -> int:
    """The columns of the input in a segment, from the shape of the weights alone; at least
    ``width`` where the output has columns enough to fill a device."""
    tiles = -(-num_out // COLUMNS)
    count = max(1, min(MAX_SEGMENTS, width // MIN_SEGMENT, WANTED // tiles))
    return -(-width // (count * DEPTH)) * DEPTH


def matmul_tile(num_rows: int, whole: bool, dtype: torch.dtype) -> MatmulTile:
    """``whole``: there is one segment, and a program needs no second set of sums."""
    if is_wide(dtype):  # with four warps, a second set of sums spills under Triton 3.9
        warps = 4 if num_rows <= FEW_ROWS else 8
        return MatmulTile(FEW_ROWS, COLUMNS, Launch(tile=32, num_warps=warps, num_stages=3))
    if num_rows <= FEW_ROWS:
        stages = 5 if capability() else 4  # AMD's programs have 64 KB of shared memory
        return MatmulTile(FEW_ROWS, COLUMNS, Launch(tile=DEPTH, num_warps=4, num_stages=stages))
    columns = 256 if whole and capability() else 128
    return MatmulTile(128, columns, Launch(tile=DEPTH, num_warps=8, num_stages=3))


@triton.jit
def products(
    x_tile, weight_tile, real_row, real_column, begin, end,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The products of the input's columns ``begin:end``, added in their order."""
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        inside = k < WIDTH - start
        a = tl.load(x_tile + start, mask=real_row[:, None] & inside[None, :], other=0.0)
        b = tl.load(weight_tile + start, mask=real_column[None, :] & inside[:, None], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=["num_rows"])
def linear_kernel(
    x,  # [num_rows, WIDTH], C-contiguous
    weight,  # [NUM_OUT, WIDTH], C-contiguous
    bias,  # [NUM_OUT], or anything without BIAS
    out,  # [num_rows, NUM_OUT]; with APART [segments, num_rows, NUM_OUT]
    num_rows,
    NUM_OUT: tl.constexpr, WIDTH: tl.constexpr, SEGMENT: tl.constexpr, APART: tl.constexpr,
    BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid ``(row tiles * column tiles, segments with APART)``, in groups of GROUP_M row tiles."""
    row_tiles, column_tiles = tl.cdiv(num_rows, BLOCK_M), tl.cdiv(NUM_OUT, BLOCK_N)
    tile = tl.program_id(0)
    group = tile // (GROUP_M * column_tiles)
    group_rows = tl.minimum(row_tiles - group * GROUP_M, GROUP_M)
    within = tile % (GROUP_M * column_tiles)
    row = (group * GROUP_M + within % group_rows) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = within // group_rows * BLOCK_N + tl.arange(0, BLOCK_N)
    real_row, real_column = row < num_rows, column < NUM_OUT

    k = tl.arange(0, BLOCK_K)
    x_tile = x + row.to(tl.int64)[:, None] * WIDTH + k[None, :]
    weight_tile = weight + column.to(tl.int64)[None, :] * WIDTH + k[:, None]
    out_row = row.to(tl.int64)
    if SEGMENT >= WIDTH:
        total = products(
            x_tile, weight_tile, real_row, real_column, 0, WIDTH, WIDTH, BLOCK_M, BLOCK_N, BLOCK_K,
            STAGES,
        )  # fmt: skip
    elif APART:
        begin = tl.program_id(1) * SEGMENT
        total = products(
            x_tile, weight_tile, real_row, real_column, begin, tl.minimum(begin + SEGMENT, WIDTH),
            WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, STAGES,
        )  # fmt: skip
        out_row += tl.program_id(1).to(tl.int64) * num_rows
    else:
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for begin in tl.range(0, WIDTH, SEGMENT, num_stages=1):
            total += products(
                x_tile, weight_tile, real_row, real_column, begin,
                tl.minimum(begin + SEGMENT, WIDTH), WIDTH, BLOCK_M, BLOCK_N, BLOCK_K, STAGES,
            )  # fmt: skip
    if BIAS:
        total += tl.load(bias + column, mask=real_column, other=0.0).to(tl.float32)[None, :]
    target = out + out_row[:, None] * NUM_OUT + column[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=real_row[:, None] & real_column[None, :])


@triton.jit(do_not_specialize=["num_rows"])
def add_segments_kernel(
    parts,  # [SEGMENTS, num_rows, NUM_OUT] fp32
    bias,  # [NUM_OUT], or anything without BIAS
    out,  # [num_rows, NUM_OUT]
    num_rows,
    NUM_OUT: tl.constexpr, SEGMENTS: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid ``(num_rows, ceil(NUM_OUT / BLOCK))``."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < NUM_OUT
    total = tl.zeros([BLOCK], tl.float32)
    for segment in tl.static_range(SEGMENTS):
        total += tl.load(
            parts + (row + segment * num_rows) * NUM_OUT + column, mask=inside, other=0.0
        )
    if BIAS:
        total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * NUM_OUT + column, total.to(out.dtype.element_ty), mask=inside)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x [rows, in]``, ``weight [out, in]``, both C-contiguous, of one dtype."""
    num_rows, width = x.shape
    num_out = weight.shape[0]
    check(
        weight.shape[1] == width and x.is_contiguous() and weight.is_contiguous(),
        f"x {tuple(x.shape)}, weight {tuple(weight.shape)}; both must be C-contiguous and end in "
        "the same width",
    )
    segment = segment_of(width, num_out)
    segments = -(-width // segment)
    apart = segments > 1 and num_rows <= FEW_ROWS
    tile, out = matmul_tile(num_rows, segments == 1, x.dtype), x.new_empty((num_rows, num_out))
    target = out
    if apart:
        target = x.new_empty((segments, num_rows, num_out), dtype=torch.float32)
    has_bias, given = bias is not None, x if bias is None else bias
    tiles = -(-num_rows // tile.rows) * -(-num_out // tile.columns)
    linear_kernel[(tiles, segments if apart else 1)](
        x, weight, given, target, num_rows, num_out, width, segment, apart, has_bias and not apart,
        tile.rows, tile.columns, tile.launch.tile, GROUP, tile.launch.num_stages,
        **tile.launch.options(),
    )  # fmt: skip
    if apart:
        add_segments_kernel[(num_rows, -(-num_out // ADD.tile))](
            target, given, out, num_rows, num_out, segments, has_bias, ADD.tile, **ADD.options()
        )
    return out
