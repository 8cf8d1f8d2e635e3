"""Products of a few rows with a large matrix, on the form in which oneDNN keeps that matrix: a
decode's linear layers.

A step of a few sequences takes as long as it takes to read the weights, which oneDNN does at half
of the memory's rate (measured on AVX2). The bits are oneDNN's: its packed product takes the
elements of a row one after another, in blocks whose sums are added, and so does the kernel here.
Whether a matrix lies as assumed, and whether the bits agree, is asked of each shape before it is
relied on (``few_rows``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from .cpu_compiled import NO_FLOAT
from .cpu_kernel import job, kernel
from .cpu_lanes import (
    PANEL,
    SHIFT,
    WIDTH,
    add,
    floats,
    halves,
    load,
    load_upper,
    store,
    take_next,
)
from .cpu_products import products
from .cpu_team import run

STEPS = 128  # elements of a row; their part of a panel stays in a cache until all rows had it
ROWS = 6  # of a tile: 12 sums, which a processor with AVX2 has registers for
LinearJob = job("LinearJob", "x weights out bias num_rows width columns block is_half")
one, two, three = products(1, 8), products(2, 4), products(3, 2)
four, five, six = products(4, 2), products(5, 2), products(6, 2)


@njit(inline="always")
def multiply_tile(
    rows: Any, x: Any, x_at: Any, width: Any, weights: Any, w_at: Any, count: Any,
    following: Any, n_at: Any, pace: Any, sums: Any, s_at: Any,
) -> None:  # fmt: skip
    """``products`` of so many rows."""
    if rows == 1:
        one(x, x_at, width, weights, w_at, count, following, n_at, pace, sums, s_at)
    elif rows == 2:
        two(x, x_at, width, weights, w_at, count, following, n_at, pace, sums, s_at)
    elif rows == 3:
        three(x, x_at, width, weights, w_at, count, following, n_at, pace, sums, s_at)
    elif rows == 4:
        four(x, x_at, width, weights, w_at, count, following, n_at, pace, sums, s_at)
    elif rows == 5:
        five(x, x_at, width, weights, w_at, count, following, n_at, pace, sums, s_at)
    else:
        six(x, x_at, width, weights, w_at, count, following, n_at, pace, sums, s_at)


@kernel(LinearJob)
def multiply(pointer: Any) -> None:
    """``out = x @ weights + bias``; an item a panel. Weights are fp32 or, with ``is_half``,
    bf16: a single tile of rows widens them as it takes them; for several tiles their part of a
    panel is widened once.

    The weights of the next steps are asked for while the present ones are multiplied, evenly: so
    memory and multipliers work at the same time.
    """
    job = carray(pointer, 1)[0]
    num_rows, width, columns, block = job.num_rows, job.width, job.columns, job.block
    is_half = job.is_half
    x = carray(floats(job.x), num_rows * width)
    stored = carray(floats(job.weights), width * columns // (1 + is_half))
    uppers = carray(halves(job.weights), width * columns)
    out, bias = carray(floats(job.out), num_rows * columns), carray(floats(job.bias), columns)
    sums = np.empty(num_rows * PANEL, np.float32)
    num_parts = 1 if num_rows == 1 else 2 if num_rows == 2 else 4
    part_width = PANEL // num_parts
    num_tiles = -(-num_rows // ROWS)
    scratch = np.empty(STEPS * PANEL * is_half, np.float32)
    panel = take_next(pointer)
    while panel < job.num_items:
        following = take_next(pointer)
        for begin in range(0, width, STEPS):
            count = min(STEPS, width - begin)
            if begin % block == 0:
                sums[:] = NO_FLOAT
            chunk = (panel * width + begin) * PANEL
            ahead, asked = chunk + count * PANEL, min(STEPS, width - begin - count) * PANEL
            if asked == 0 and following < job.num_items:
                ahead, asked = following * width * PANEL, min(STEPS, width) * PANEL
            if is_half:
                ahead, asked = ahead // 2, asked // 2
                if num_tiles > 1:
                    for i in range(0, count * PANEL, WIDTH):
                        store(scratch, i, load_upper(uppers, chunk + i))
            each = asked // (num_parts * num_tiles)
            pace = (each << SHIFT) // count
            for part in range(num_parts):
                at, row = part * part_width, 0
                for tile in range(num_tiles):
                    rows = num_rows // num_tiles + (tile < num_rows % num_tiles)
                    x_at, s_at = row * width + begin, row * PANEL + part * part_width
                    if not is_half:
                        multiply_tile(
                            rows, x, x_at, width, stored, chunk + at, count, stored, ahead, pace,
                            sums, s_at,
                        )  # fmt: skip
                    elif num_tiles == 1:
                        multiply_tile(
                            rows, x, x_at, width, uppers, chunk + at, count, stored, ahead, pace,
                            sums, s_at,
                        )  # fmt: skip
                    else:
                        multiply_tile(
                            rows, x, x_at, width, scratch, at, count, stored, ahead, pace, sums,
                            s_at,
                        )  # fmt: skip
                    row, ahead = row + rows, ahead + each
            end = begin + count
            if end % block != 0 and end != width:
                continue
            for row in range(num_rows):
                at = row * columns + panel * PANEL
                for i in range(0, PANEL, WIDTH):
                    total = load(sums, row * PANEL + i)
                    if begin >= block:
                        total = add(load(out, at + i), total)
                    if end == width and job.bias != 0:
                        total = add(total, load(bias, panel * PANEL + i))
                    store(out, at + i, total)
        panel = following


def panels(packed: Tensor) -> int | None:
    """The address of the panels of an fp32 matrix that oneDNN packed; ``None`` if the matrix's size
    or dtype says that there are none."""
    ops = torch.ops.mkldnn
    columns, width = packed.shape
    if packed.dtype != torch.float32 or columns % PANEL:
        return None
    if not hasattr(ops, "data_ptr") or ops._nbytes(packed) != 4 * width * columns:
        return None
    return int(ops.data_ptr(packed))


def product(x: Tensor, columns: int, where: int, bias: Tensor | None, block: int) -> Tensor:
    """``x @ weights + bias``, of the ``columns`` columns whose panels are at ``where``; a row's
    products are added up in blocks of ``block``."""
    out = x.new_empty((len(x), columns))
    run(multiply, linear_job(x, where, bias, out, block))
    return out


def linear_job(
    x: Tensor, where: int, bias: Tensor | None, out: Tensor, block: int, is_half: bool = False
) -> Any:
    """A job of ``multiply``, of ``x`` ``[rows, width]`` and the panels at ``where``, for ``out``
    ``[rows, columns]``."""
    (rows, width), columns = x.shape, out.shape[1]
    return LinearJob(
        0, columns // PANEL, x.data_ptr(), where, out.data_ptr(),
        0 if bias is None else bias.data_ptr(), rows, width, columns, block, is_half,
    )  # fmt: skip
