"""e4m3 in Triton kernels: elements of a pool in the model's dtype, and back.

GPUs that convert e4m3 by instructions read it as such; elsewhere it is bytes, and converted by
integer operations. Both are exact, and so give the same bits. Stores, of which there are few, are
always by integer operations. Reference: ``float8.narrowed``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .float8 import FLOAT8, as_bytes
from .launch import capability, interpreted

NATIVE_FROM = 89  # the compute capability, times 10, that has the instructions


def readable(pool: Tensor) -> Tensor:
    """A pool as attention's kernels read it: e4m3 as bytes on older GPUs, on AMD's and in the
    interpreter."""
    if pool.dtype == FLOAT8 and (interpreted() or capability() < NATIVE_FROM):
        return as_bytes(pool)
    return pool


@triton.jit
def widened(x, dtype: tl.constexpr):
    """Elements of a pool in ``dtype``, exactly. Bytes are e4m3: their fields, moved to those of
    fp16, are the number over 2**8, subnormal numbers among them."""
    if x.dtype == tl.uint8:
        bits = x.to(tl.int16)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        value = half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        result = tl.where((bits & 0x7F) == 0x7F, float("nan"), value).to(dtype)
    else:
        result = x.to(dtype)
    return result


@triton.jit
def stored(x, pool):
    """``x`` as elements of what ``pool`` points to: rounded; e4m3 where that is bytes."""
    if pool.dtype.element_ty == tl.uint8:
        wide = x.to(tl.float32)
        size = tl.minimum(tl.abs(wide), 448.0)
        bits = size.to(tl.int32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
        # The last bit of numbers from 2**14 on is 2**-9, as that of e4m3's subnormal numbers is.
        tiny = (size + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
        code = tl.where(size < 0.015625, tiny, normal)
        code = tl.where(wide == wide, code, 0x7F)
        sign = (wide.to(tl.int32, bitcast=True) >> 24) & 0x80
        result = (code | sign).to(tl.uint8)
    else:
        result = x.to(pool.dtype.element_ty)
    return result
