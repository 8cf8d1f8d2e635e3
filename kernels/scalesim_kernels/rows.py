"""RMSNorm with residual, and gated activations: ops on rows that know no pages.

References: ``rms_norm``, ``silu_mul`` and ``gelu_mul`` of ``reference``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, check, next_power_of_2

GATED = Launch(tile=1024, num_warps=4)
MAX_HIDDEN = 32768  # a row is held in registers at once


def norm_launch(hidden: int) -> Launch:
    tile = next_power_of_2(hidden)
    return Launch(tile=tile, num_warps=min(16, max(1, tile // 512)))


@triton.jit
def rms_norm_kernel(
    x,  # [num_tokens, HIDDEN], C-contiguous
    residual,  # the same, overwritten with x + residual; anything without ADD
    weight,  # [HIDDEN]
    out,  # as x
    eps,
    HIDDEN: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Grid ``(num_tokens,)``: a row each."""
    column = tl.arange(0, BLOCK)
    inside = column < HIDDEN
    offset = tl.program_id(0).to(tl.int64) * HIDDEN + column
    row = tl.load(x + offset, mask=inside, other=0.0)
    if ADD:
        more = tl.load(residual + offset, mask=inside, other=0.0)
        row = (row.to(tl.float32) + more.to(tl.float32)).to(x.dtype.element_ty)
        tl.store(residual + offset, row, mask=inside)
    wide = row.to(tl.float32)
    inverse = 1.0 / tl.sqrt_rn(tl.sum(wide * wide, 0) / HIDDEN + eps)
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + offset, (wide * inverse * scale).to(out.dtype.element_ty), mask=inside)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    num_tokens, hidden = x.shape
    check(hidden <= MAX_HIDDEN, f"hidden={hidden}; the Triton RMSNorm takes up to {MAX_HIDDEN}")
    launch, out = norm_launch(hidden), torch.empty_like(x)
    total = x if residual is None else residual
    rms_norm_kernel[(num_tokens,)](
        x, total, weight, out, eps, hidden, launch.tile, residual is not None, **launch.options()
    )
    return out, total


@triton.jit
def gated_kernel(
    gate_up,  # [rows, 2 * WIDTH], C-contiguous, gate first
    out,  # [rows, WIDTH]
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, GELU: tl.constexpr,
):  # fmt: skip
    """Grid ``(rows, ceil(WIDTH / BLOCK))``. Both activations are ``gate * sigmoid(inner)``."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    gate = tl.load(gate_up + row * (2 * WIDTH) + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * (2 * WIDTH) + WIDTH + column, mask=inside, other=0.0)
    inner = gate
    if GELU:  # (1 + tanh(x)) / 2 is sigmoid(2 * x)
        inner = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    result = gate / (1.0 + tl.exp(-inner)) * up.to(tl.float32)
    tl.store(out + row * WIDTH + column, result.to(out.dtype.element_ty), mask=inside)


def silu_mul(gate_up: Tensor) -> Tensor:
    return gated(gate_up, False)


def gelu_mul(gate_up: Tensor) -> Tensor:
    return gated(gate_up, True)


def gated(gate_up: Tensor, gelu: bool) -> Tensor:
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((num_rows, width))
    gated_kernel[(num_rows, -(-width // GATED.tile))](
        gate_up, out, width, GATED.tile, gelu, **GATED.options()
    )
    return out
