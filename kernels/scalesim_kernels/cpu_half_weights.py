"""Linear layers whose matrix is held in bf16 and multiplied in fp32.

Most checkpoints are in bf16. Where a matrix in fp32 has no bit that bf16 lacks, a CPU holds it in
half of the bytes, and a step of a few sequences, which takes as long as the weights take to be
read, takes half as long. Nothing is rounded: a weight is widened on its way into a register, and
products and sums are those of fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cpu_few_rows import linear_job, multiply
from .cpu_lanes import PANEL
from .cpu_team import run

BLOCK = 1024  # products of a row that are added up on their own; oneDNN's on AVX2
MOST_ROWS = 128  # of a call: widening is shared, and inputs and sums stay in a core's caches


def as_halves(weight: Tensor) -> Tensor | None:
    """The fp32 matrix ``[out, in]`` in bf16, as panels ``[out / 64, in, 64]``; ``None`` where that
    would lose a bit, or where ``out`` makes no whole panels."""
    columns, width = weight.shape
    if weight.dtype != torch.float32 or columns % PANEL:
        return None
    half = weight.bfloat16()
    if not torch.equal(half.float(), weight):
        return None
    return half.view(columns // PANEL, PANEL, width).transpose(1, 2).contiguous()


def is_halves(weight: Tensor) -> bool:
    """Whether ``weight`` is of ``as_halves``: matrices have two dimensions."""
    return weight.dim() == 3


def linear_of_halves(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` of ``[rows, in]`` fp32, for any number of rows, with a matrix of
    ``as_halves``. The order of sums is fixed by the source, so rows stand alone on every processor;
    where a library adds up in blocks of ``BLOCK`` too, the bits are those of the matrix in fp32."""
    x = x.contiguous()
    out = x.new_empty((len(x), len(weight) * PANEL))
    if not len(x):
        return out
    num_calls = -(-len(x) // MOST_ROWS)
    for rows, result in zip(x.tensor_split(num_calls), out.tensor_split(num_calls), strict=True):
        run(multiply, linear_job(rows, weight.data_ptr(), bias, result, BLOCK, is_half=True))
    return out
