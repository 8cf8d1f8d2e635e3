"""Bits that must agree on the device: decode and prefill, chunks, splits and tiles, and a row
beside any others. The conformance kit asks the same in Triton's interpreter, whose products are not
those of tensor cores.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from scalesim_kernels.conformance.paged import same_bits
from scalesim_kernels.conformance.problems import planned
from scalesim_kernels.float8 import FLOAT8, narrowed
from torch import Tensor

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.forms import shared_prefix
from benchmarks.gpu.paged import Heads, heads_of, make_batch

BLOCK = 16
QWEN_7B = Heads(28, 4, 128, 28)
WIDTHS = ((4096, 4096), (14336, 4096), (4096, 6144), (4096, 28672))  # o, down, qkv, gate_up of 8B


def run(bench: Bench) -> None:
    table = bench.report.table("Bits that agree", ["what", "dtype", "compared", "differing"])
    for dtype in (torch.bfloat16, torch.float16) if bench.on_gpu else (torch.float32,):
        with torch.inference_mode():
            for what, compared, differing in pairs(bench, dtype):
                table.add(what, str(dtype).removeprefix("torch."), compared, differing)
                bench.report.hold("floor", f"differing bits: {what}, {dtype}", differing, most=0)
                bench.need_s(0.5, "more bits")


def pairs(bench: Bench, dtype: torch.dtype) -> Iterator[tuple[str, int, int]]:
    """(what, rows compared, rows that differ)."""
    for heads in {heads_of(bench), QWEN_7B if bench.on_gpu else heads_of(bench)}:
        group = f"group {heads.num_heads // heads.num_kv_heads}"
        for window, kv in ((None, dtype), (300, dtype), (None, FLOAT8)):
            what = f"decode and prefill, {group}" + (f", window {window}" if window else "")
            what += ", KV in fp8" if kv == FLOAT8 else ""
            yield what, *decode_and_prefill(bench, heads, dtype, kv, window)
        yield f"a shared prefix and copies of it, {group}", *shared_prefix(bench, heads, dtype)
    for width, num_out in WIDTHS if bench.on_gpu else ((1200, 64),):
        yield (
            f"linear {width} × {num_out}, 1 to 300 rows",
            *linear_rows(bench, width, num_out, dtype),
        )
    yield "sampling, alone and in a batch", *sampled_rows(bench)


def decode_and_prefill(
    bench: Bench, heads: Heads, dtype: torch.dtype, kv: torch.dtype, window: int | None
) -> tuple[int, int]:
    """The last tokens of a prompt in one chunk, against each of them as a decode, beside others."""
    kernels = bench.kernels()
    context, query = (1100, 700) if bench.on_gpu else (70, 20)
    pages = 2 * (context // BLOCK + 1) + 1
    shape = (pages, 1, 2, heads.num_kv_heads, BLOCK, heads.head_dim)
    pool = narrowed(bench.normal(*shape, dtype=dtype), kv)
    q = bench.normal(query, heads.num_heads, heads.head_dim, dtype=dtype)
    scale, options = heads.head_dim**-0.5, {} if window is None else {"window": window}
    whole = make_batch(bench, [context], [query], pages, BLOCK)
    out = torch.zeros_like(q)
    plan = planned(kernels, whole, pool, heads.num_heads, True, dtype)
    kernels.paged_prefill(q, pool, 0, whole, plan, scale, out, **options)
    differing = 0
    picked = range(0, query, 17)
    for token in picked:
        position = context - query + token
        batch = make_batch(bench, [position + 1, 33], [1, 1], pages, BLOCK)
        batch.block_table[1, : whole.block_table.shape[1]].zero_()
        used = position // BLOCK + 1
        batch.block_table[1, :used] = whole.block_table[1, :used]
        pair, alone = torch.stack((q[token], q[0])), torch.zeros_like(q[:2])
        plan = planned(kernels, batch, pool, heads.num_heads, True, dtype)
        kernels.paged_decode(pair, pool, 0, batch, plan, scale, alone, **options)
        differing += not same_bits(alone[0].cpu(), out[token].cpu())
    return len(picked), differing


def linear_rows(bench: Bench, width: int, num_out: int, dtype: torch.dtype) -> tuple[int, int]:
    kernels, step = bench.kernels(), bench.kernels().row_multiple
    x, weight = bench.normal(320, width, dtype=dtype), bench.normal(num_out, width, dtype=dtype)
    weight = kernels.pack_weight(weight)
    whole = kernels.linear(x, weight)
    counts = [step * -(-count // step) for count in (1, 16, 64, 80, 128, 192, 304)]
    differing = sum(
        not same_bits(kernels.linear(x[16 : 16 + count].clone(), weight).cpu(),
                      whole[16 : 16 + count].cpu())
        for count in counts
    )  # fmt: skip
    return len(counts), differing


def sampled_rows(bench: Bench) -> tuple[int, int]:
    kernels, count, vocab = bench.kernels(), 12, 128256 if bench.on_gpu else 300
    logits = 3 * bench.normal(count, vocab, dtype=torch.float32)

    def columns(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
        repeated = [values[row % len(values)] for row in range(count)]
        return torch.tensor(repeated, dtype=dtype, device=bench.place)

    given = (
        columns(0.0, 0.7, 1.3), columns(0, 40, dtype=torch.int32), columns(1.0, 0.95, 0.5, 1.0),
        torch.arange(count, device=bench.place), columns(7, dtype=torch.int32),
    )  # fmt: skip
    whole = kernels.sample(logits, *given)
    alone = [
        kernels.sample(logits[row : row + 1].clone(), *(x[row : row + 1].clone() for x in given))
        for row in range(count)
    ]
    return count, int((torch.cat(alone) != whole).sum())
