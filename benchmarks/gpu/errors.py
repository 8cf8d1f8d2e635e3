"""Kernel errors in the model's dtypes against fp64: ‖out − ref‖ / ‖ref‖ of each op's result.

The references here are written from the formulas, in fp64, and share no code with any kernel set.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.paged import gathered, heads_of, make_batch

BLOCK = 16
ROWS = 64
MOST = {torch.bfloat16: 1e-2, torch.float16: 1e-3, torch.float32: 1e-5}


def run(bench: Bench) -> None:
    table = bench.report.table("Errors against fp64", ["op", "dtype", "relative error"])
    dtypes = (torch.bfloat16, torch.float16, torch.float32) if bench.on_gpu else (torch.float32,)
    for dtype in dtypes:
        for name, error in errors(bench, dtype).items():
            table.rows.append([name, str(dtype).removeprefix("torch."), error])
            bench.report.hold("floor", f"error of {name} in {dtype}", error, most=MOST[dtype])


def errors(bench: Bench, dtype: torch.dtype) -> dict[str, float]:
    found: dict[str, float] = {}
    with torch.inference_mode():
        for make in (norm, activation, product, attention):
            for name, got, expected in make(bench, dtype):
                difference = (got.double() - expected).norm() / expected.norm()
                found[name] = float(difference)
    return found


Results = list[tuple[str, Tensor, Tensor]]


def norm(bench: Bench, dtype: torch.dtype) -> Results:
    x, weight = (bench.normal(*shape, dtype=dtype) for shape in ((ROWS, 256), (256,)))
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    return [("rms_norm", bench.kernels().rms_norm(x, weight, 1e-5)[0], expected)]


def activation(bench: Bench, dtype: torch.dtype) -> Results:
    x = bench.normal(ROWS, 512, dtype=dtype)
    gate, up = x.double().chunk(2, dim=-1)
    expected = gate * torch.sigmoid(gate) * up
    return [("silu_mul", bench.kernels().silu_mul(x), expected)]


def product(bench: Bench, dtype: torch.dtype) -> Results:
    x, weight = bench.normal(ROWS, 256, dtype=dtype), bench.normal(384, 256, dtype=dtype)
    kernels = bench.kernels()
    got = kernels.linear(x, kernels.pack_weight(weight))
    return [("linear", got, x.double() @ weight.double().T)]


def attention(bench: Bench, dtype: torch.dtype) -> Results:
    heads, context, num_seqs = heads_of(bench), 300, 4
    pages = num_seqs * (context // BLOCK + 1) + 1
    shape = (pages, 1, 2, heads.num_kv_heads, BLOCK, heads.head_dim)
    pool = bench.normal(*shape, dtype=dtype)
    results: Results = []
    for name, query in (("paged_decode", 1), ("paged_prefill", 40)):
        batch = make_batch(bench, [context] * num_seqs, [query] * num_seqs, pages, BLOCK)
        q = bench.normal(num_seqs * query, heads.num_heads, heads.head_dim, dtype=dtype)
        out, kernels = torch.zeros_like(q), bench.kernels()
        plan = kernels.plan(batch, pool, heads.num_heads, True)
        op: Callable[..., None] = getattr(kernels, name)
        op(q, pool, 0, batch, plan, heads.head_dim**-0.5, out)
        keys, values = (
            each.double().repeat_interleave(heads.num_heads // heads.num_kv_heads, 1)
            for each in gathered(pool, 0, batch, context)
        )
        queries = q.double().view(num_seqs, query, heads.num_heads, -1).transpose(1, 2)
        scores = queries @ keys.transpose(2, 3) * heads.head_dim**-0.5
        last = torch.arange(context - query, context, device=bench.place)
        hidden = torch.arange(context, device=bench.place) > last[:, None]
        mixed = torch.softmax(scores.masked_fill(hidden, float("-inf")), -1) @ values
        results.append((name, out, mixed.transpose(1, 2).reshape(out.shape)))
    return results
