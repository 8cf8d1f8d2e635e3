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
from numba import carray
from torch import Tensor

from .cpu_compiled import NO_FLOAT, job, kernel
from .cpu_lanes import PANEL, WIDTH, add, floats, load, products, store, take_next
from .cpu_team import run

STEPS = 128  # of a panel that are used for all rows before the next: they stay in a cache
ROWS = 6  # of a tile: 12 sums, which a processor with AVX2 has registers for
LinearJob = job("LinearJob", "x weights out bias num_rows width columns block")
one, two, three = products(1, 8), products(2, 4), products(3, 4)
four, five, six = products(4, 2), products(5, 2), products(6, 2)


@kernel(LinearJob)
def multiply(pointer: Any) -> None:
    """``out = x @ weights + bias``; an item a panel."""
    job = carray(pointer, 1)[0]
    num_rows, width, columns, block = job.num_rows, job.width, job.columns, job.block
    x = carray(floats(job.x), num_rows * width)
    weights = carray(floats(job.weights), width * columns)
    out, bias = carray(floats(job.out), num_rows * columns), carray(floats(job.bias), columns)
    sums = np.empty(num_rows * PANEL, np.float32)
    while True:
        panel = take_next(pointer)
        if panel >= job.num_items:
            return
        for begin in range(0, width, STEPS):
            count, last = min(STEPS, width - begin), width - 1 - begin
            if begin % block == 0:
                sums[:] = NO_FLOAT
            w_at = (panel * width + begin) * PANEL
            row = 0
            while row < num_rows:
                rows = min(ROWS, num_rows - row)
                x_at, s_at = row * width + begin, row * PANEL
                if rows == 1:
                    one(x, x_at, width, weights, w_at, PANEL, count, last, sums, s_at)
                for part in range(0, PANEL if rows in (2, 3) else 0, 4 * WIDTH):
                    at, ahead = w_at + part, last if row + part == 0 else -1
                    if rows == 2:
                        two(x, x_at, width, weights, at, PANEL, count, ahead, sums, s_at + part)
                    else:
                        three(x, x_at, width, weights, at, PANEL, count, ahead, sums, s_at + part)
                for part in range(0, PANEL if rows > 3 else 0, 2 * WIDTH):
                    at, ahead = w_at + part, last if row + part == 0 else -1
                    if rows == 4:
                        four(x, x_at, width, weights, at, PANEL, count, ahead, sums, s_at + part)
                    elif rows == 5:
                        five(x, x_at, width, weights, at, PANEL, count, ahead, sums, s_at + part)
                    else:
                        six(x, x_at, width, weights, at, PANEL, count, ahead, sums, s_at + part)
                row += rows
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


def product(x: Tensor, packed: Tensor, where: int, bias: Tensor | None, block: int) -> Tensor:
    """``x @ packed.T + bias``, summed in blocks of ``block`` elements of a row."""
    columns, width = packed.shape
    out = x.new_empty((len(x), columns))
    job = LinearJob(
        0, columns // PANEL, x.data_ptr(), where, out.data_ptr(),
        0 if bias is None else bias.data_ptr(), len(x), width, columns, block,
    )  # fmt: skip
    run(multiply, job)
    return out
