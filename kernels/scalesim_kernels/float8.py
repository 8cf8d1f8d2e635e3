"""KV in one byte an element: e4m3 (torch's ``float8_e4m3fn``), saturating, without scales.

4 bits of exponent and 3 of mantissa, no infinity, largest value 448 (Micikevicius et al., "FP8
Formats for Deep Learning", 2022). A number is rounded to the nearest, ties to even; what is larger
than 448 becomes 448; NaN stays. So a stored element follows from that element alone, and not from
what else its page holds, or will hold later: a scale for a page or a head would have to change when
a later token exceeds it. Reading is exact in fp16, bf16 and fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT8 = torch.float8_e4m3fn
LARGEST = 448.0


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` as a pool of ``dtype`` stores it."""
    return x.float().clamp(-LARGEST, LARGEST).to(dtype) if dtype == FLOAT8 else x.to(dtype)


def as_bytes(pool: Tensor) -> Tensor:
    """A pool in e4m3 as uint8, which more operations take than e4m3; any other as it is. Shares
    memory."""
    return pool.view(torch.uint8) if pool.dtype == FLOAT8 else pool
