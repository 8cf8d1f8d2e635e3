"""Linear layers whose rows do not depend on the other rows: one tile shape for every row count.

Vendors' matmuls choose a kernel, and with it an order of summation, by the number of rows. Here a
row's products are added in one order, by one instruction, for one row or thousands: what
reproducible mode asks of decode and prefill. Reference: ``reference.linear``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, check, is_wide

ROWS = 64  # the height of Hopper's wgmma; weights, not rows, bound a decode's time
COLUMNS = 64
GROUP = 8  # row tiles that share a column tile of weights while it is in cache


def matmul_launch(dtype: torch.dtype) -> Launch:
    return Launch(tile=32 if is_wide(dtype) else 64, num_warps=4, num_stages=3)


@triton.jit(do_not_specialize=["num_rows"])
def linear_kernel(
    x,  # [num_rows, WIDTH], C-contiguous
    weight,  # [NUM_OUT, WIDTH], C-contiguous
    bias,  # [NUM_OUT], or anything without BIAS
    out,  # [num_rows, NUM_OUT]
    num_rows,
    NUM_OUT: tl.constexpr, WIDTH: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Grid ``(row tiles * column tiles,)``, in groups of GROUP_M row tiles."""
    row_tiles, column_tiles = tl.cdiv(num_rows, BLOCK_M), tl.cdiv(NUM_OUT, BLOCK_N)
    pid = tl.program_id(0)
    group = pid // (GROUP_M * column_tiles)
    group_rows = tl.minimum(row_tiles - group * GROUP_M, GROUP_M)
    within = pid % (GROUP_M * column_tiles)
    row = (group * GROUP_M + within % group_rows) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = within // group_rows * BLOCK_N + tl.arange(0, BLOCK_N)
    real_row, real_column = row < num_rows, column < NUM_OUT

    k = tl.arange(0, BLOCK_K)
    x_tile = x + row.to(tl.int64)[:, None] * WIDTH + k[None, :]
    weight_tile = weight + column.to(tl.int64)[None, :] * WIDTH + k[:, None]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(0, WIDTH, BLOCK_K, num_stages=STAGES):
        inside = k < WIDTH - start
        a = tl.load(x_tile + start, mask=real_row[:, None] & inside[None, :], other=0.0)
        b = tl.load(weight_tile + start, mask=real_column[None, :] & inside[:, None], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    if BIAS:
        acc += tl.load(bias + column, mask=real_column, other=0.0).to(tl.float32)[None, :]
    target = out + row.to(tl.int64)[:, None] * NUM_OUT + column[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=real_row[:, None] & real_column[None, :])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x [rows, in]``, ``weight [out, in]``, both C-contiguous, of one dtype."""
    num_rows, width = x.shape
    num_out = weight.shape[0]
    check(
        weight.shape[1] == width and x.is_contiguous() and weight.is_contiguous(),
        f"x {tuple(x.shape)}, weight {tuple(weight.shape)}; both must be C-contiguous and end in "
        "the same width",
    )
    launch, out = matmul_launch(x.dtype), x.new_empty((num_rows, num_out))
    grid = (-(-num_rows // ROWS) * -(-num_out // COLUMNS),)
    linear_kernel[grid](
        x, weight, x if bias is None else bias, out, num_rows, num_out, width, bias is not None,
        ROWS, COLUMNS, launch.tile, GROUP, launch.num_stages, **launch.options(),
    )  # fmt: skip
    return out
