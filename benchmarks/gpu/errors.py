"""Kernel errors in the model's dtypes against fp64: ‖out − ref‖ / ‖ref‖ of each op's result.

The references here are written from the formulas, in fp64, and share no code with any kernel set.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from scalesim_kernels.conformance import PROBLEMS, check_op
from torch import Tensor

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.paged import gathered, heads_of, make_batch

BLOCK = 16
ROWS = 64
MOST = {torch.bfloat16: 1e-2, torch.float16: 1e-3, torch.float32: 1e-5}


KIT = ("qk_norm_rope_store", "lora_shrink", "lora_expand", "sample", "adjust_logits", "log_probs")
FIRST_CASES = 2  # of each op of the kit; the section ``kit`` has all


def run(bench: Bench) -> None:
    table = bench.report.table("Errors against fp64", ["op", "dtype", "relative error"])
    dtypes = (torch.bfloat16, torch.float16) if bench.on_gpu else (torch.float32,)
    for dtype in dtypes:
        bench.need_s(1.0, f"errors in {dtype}")
        for name, error in errors(bench, dtype).items():
            table.add(name, str(dtype).removeprefix("torch."), error)
            bench.report.hold("floor", f"error of {name} in {dtype}", error, most=MOST[dtype])
    judge(bench, KIT, dtypes, FIRST_CASES)


def kit(bench: Bench) -> None:
    """Every case of the conformance kit, for as long as there is time."""
    dtypes = (torch.bfloat16, torch.float16) if bench.on_gpu else (torch.float32,)
    judge(bench, tuple(PROBLEMS), dtypes, None if bench.on_gpu else 1)


def judge(
    bench: Bench, ops: tuple[str, ...], dtypes: tuple[torch.dtype, ...], cases: int | None
) -> None:
    table = bench.report.table(
        "Conformance: errors, bits beside other rows, bytes that are not the op's",
        ["op", "cases", "failed", "worst error"],
    )
    for op in ops:
        verdicts = []
        judged = check_op(bench.kernels(), op, device=bench.place, dtypes=dtypes, max_cases=cases)
        for verdict in judged:
            verdicts.append(verdict)
            if bench.left_s() < 0:
                bench.report.leave_out(f"cases of {op}", f"{len(verdicts)} judged: no time left")
                break
        bad = [verdict for verdict in verdicts if verdict.faults]
        table.add(op, len(verdicts), len(bad), max(verdict.error for verdict in verdicts))
        if bad:
            bench.report.figures[f"faults of {op}"] = [str(verdict) for verdict in bad]
        bench.report.hold("floor", f"failed cases of {op}", len(bad), most=0)
        if bench.left_s() < 0:
            break


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
