"""Compiles a gather with and without the alignment hint that decode relies on; prints verdicts."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from scalesim_kernels.compile_only import TARGETS, compiled
from scalesim_kernels.gate import figures


@triton.jit
def decode_kernel(q, pool, offsets, out, num_tiles, HINT: tl.constexpr):
    column, row = tl.arange(0, 128), tl.arange(0, 32)
    tile = tl.load(q + tl.arange(0, 16)[:, None] * 128 + column[None, :])
    acc = tl.zeros([16, 32], tl.float32)
    for i in tl.range(0, num_tiles, num_stages=3):
        slot = tl.load(offsets + i * 32 + row)
        if HINT:
            slot = tl.multiple_of(slot, 16)
        k = tl.load(pool + slot[:, None] + column[None, :])
        acc = tl.dot(tile, tl.trans(k), acc)
    tl.store(out + tl.arange(0, 16)[:, None] * 32 + row[None, :], acc)


for name, hint in (("hinted", True), ("bare", False)):
    half, offsets = torch.zeros(16, 128, dtype=torch.float16), torch.zeros(64, dtype=torch.int64)
    with compiled(TARGETS["sm_90"]) as found:
        decode_kernel[(1,)](half, half, offsets, half.float(), 2, hint, enable_fp_fusion=False)
    # The offsets themselves are copied asynchronously in both; a row of K takes 16-byte copies.
    sass = figures(found[0])
    print(name, "ok" if sass.async_copies > 4 else "lost")
