"""Launch parameters of the Triton kernels: tiles, warps, stages, and no contraction.

Sizes come from the tables here, by head dimension and element size, and are never tuned while
serving: a tuned size would make a result depend on when it was computed. The compile gate checks
that each line fits its targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

# Off for every kernel: which product of ``a * b + c * d`` is fused would be the compiler's choice,
# which may differ between two kernels that promise the same bits, and between Triton versions.
FP_FUSION = False


@dataclass(frozen=True, slots=True)
class Launch:
    """How one kernel is compiled. ``tile`` is what its main loop takes at a time."""

    tile: int
    num_warps: int
    num_stages: int = 1

    def options(self) -> dict[str, Any]:
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": FP_FUSION,
        }


def next_power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` at the first import)."""
    return bool(triton.knobs.runtime.interpret)


def capability() -> int:
    """The compute capability that kernels are compiled for, times 10: 80 for an A100, 90 for an
    H100; 0 for AMD's GPUs, whose programs have a third of the shared memory. The interpreter
    computes what an H100 would."""
    if interpreted():
        return 90
    target = triton.runtime.driver.active.get_current_target()
    return int(target.arch) if target.backend == "cuda" else 0


def check(condition: bool, message: str) -> None:
    """Raise ``ValueError`` for what a kernel's caller got wrong."""
    if not condition:
        raise ValueError(message)


def check_pool(pool: Tensor) -> None:
    check(
        pool.dim() == 6 and pool[:1].is_contiguous(),
        f"pool of shape {tuple(pool.shape)}, strides {pool.stride()}; it must be [num_pages, "
        "num_layers, 2, num_kv_heads, block_size, head_dim], each page C-contiguous",
    )
    block_size, head_dim = pool.shape[4], pool.shape[5]
    check(
        block_size % 16 == 0 and block_size == next_power_of_2(block_size),
        f"block_size={block_size}; the Triton kernels take 16, 32, 64, ...",
    )
    check(
        head_dim % 16 == 0 and head_dim <= 256,
        f"head_dim={head_dim}; the Triton kernels take multiples of 16 up to 256",
    )


def is_wide(dtype: torch.dtype) -> bool:
    """fp32: two times the bytes, and dot products without tensor cores (exact ones)."""
    return dtype.itemsize == 4
