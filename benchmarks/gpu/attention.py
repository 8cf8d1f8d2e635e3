"""Decode and prefill against what the machine can do (bytes, FLOPs) and against their peers: SDPA
over gathered KV, FlexAttention, and FlashInfer where it is installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from scalesim_kernels import PagedBatch
from scalesim_kernels.conformance.problems import planned
from torch import Tensor

from benchmarks.gpu import roofline
from benchmarks.gpu.bench import Bench, SkipError
from benchmarks.gpu.paged import Heads, gathered, heads_of, make_batch

GB = 10**9
BLOCK = 16
DECODES = [(batch, context) for context in (4096, 512, 32768, 2048, 8192)
           for batch in (16, 64, 1, 256, 4)]  # fmt: skip
PREFILLS = [(1, 512, 512), (1, 2048, 2048), (4, 2048, 2048), (1, 8192, 8192), (4, 512, 8192)]
TINY_DECODES, TINY_PREFILLS = [(1, 33), (2, 64)], [(1, 32, 32), (2, 16, 48)]
POOL_BYTES = 24 << 30


def decode(bench: Bench) -> None:
    heads, sizes = heads_of(bench), DECODES if bench.on_gpu else TINY_DECODES
    bandwidth = copy_bandwidth(bench)
    table = bench.report.table(
        "Decode, one layer (shares of the measured copy bandwidth; times of peers over ours)",
        [
            "batch",
            "context",
            "µs",
            "GB/s",
            "of copy",
            "expected of copy",
            "SDPA + gather",
            "SDPA alone",
            "FlashInfer",
        ],
    )
    worst = {"bytes": 10.0, "goal": 10.0, "sdpa": 10.0, "infer": 10.0}
    for num_seqs, context in sizes:
        num_bytes = num_seqs * heads.kv_bytes(context, bench.dtype.itemsize)
        if num_bytes > min(POOL_BYTES, bench.free_bytes() // 3):
            bench.report.leave_out(f"decode {num_seqs} × {context}", f"{num_bytes} bytes of KV")
            continue
        if bench.left_s() < 2.0:
            bench.report.leave_out(f"decode {num_seqs} × {context}", bench.no_time())
            continue
        pool, batch, q = case(bench, heads, [context] * num_seqs, [1] * num_seqs)
        ours = attend_s(bench, "paged_decode", heads, pool, batch, q)
        alone, whole = sdpa_decode_s(bench, heads, pool, batch, q, context)
        infer = flashinfer_s(bench, heads, pool, batch, q)
        share = num_bytes / ours / bandwidth
        table.add(num_seqs, context, 1e6 * ours, num_bytes / ours / GB, share,
             roofline.decode(num_seqs, context).share, whole / ours,
             alone / ours, "not run" if infer is None else infer / ours)  # fmt: skip
        worst["sdpa"] = min(worst["sdpa"], whole / ours)
        if context >= 4096 and num_seqs >= 16:
            worst["bytes"] = min(worst["bytes"], share)
        if infer is not None:
            worst["infer"] = min(worst["infer"], infer / ours)
    if worst["infer"] == 10.0:
        bench.report.leave_out("FlashInfer", "not installed, or it did not take a case")
    if not table.rows:
        raise SkipError(f"decode: {bench.no_time()}")
    hold = bench.report.hold
    hold("floor", "decode: SDPA over gathered KV takes, of our time", worst["sdpa"], least=1.0)
    if worst["bytes"] < 10.0:
        what = "decode, context ≥ 4096 and batch ≥ 16: share of copy bandwidth"
        hold("floor", what, worst["bytes"], least=0.75)
        hold("goal", what, worst["bytes"], least=0.9)
    if worst["infer"] < 10.0:
        hold("goal", "decode: FlashInfer takes, of our time", worst["infer"], least=0.97)


def prefill(bench: Bench) -> None:
    heads, sizes = heads_of(bench), PREFILLS if bench.on_gpu else TINY_PREFILLS
    table = bench.report.table(
        "Prefill, one layer", ["sequences", "query", "context", "form", "ms", "TFLOP/s",
                               "flash SDPA over ours"],
    )  # fmt: skip
    worst = 10.0
    for num_seqs, query, context in sizes:
        if bench.left_s() < 2.0:
            bench.report.leave_out(f"prefill {num_seqs} × {query} of {context}", bench.no_time())
            continue
        pool, batch, q = case(bench, heads, [context] * num_seqs, [query] * num_seqs)
        pairs = num_seqs * query * (context - (query - 1) / 2)
        flops = 4.0 * heads.num_heads * heads.head_dim * pairs
        peer = sdpa_prefill_s(bench, heads, pool, batch, q, context)
        for form, reproducible in (("reproducible", True), ("wide", False)):
            ours = attend_s(bench, "paged_prefill", heads, pool, batch, q, reproducible)
            table.add(num_seqs, query, context, form, 1e3 * ours, flops / ours / 1e12, peer / ours)
            if not reproducible and query == context:
                worst = min(worst, peer / ours)
    if not table.rows:
        raise SkipError(f"prefill: {bench.no_time()}")
    bench.report.hold("goal", "wide prefill: flash SDPA's time over ours", worst, least=0.7)


def flex(bench: Bench) -> None:
    """FlexAttention compiles for each shape: one decode only."""
    if not bench.on_gpu:
        raise SkipError("FlexAttention's decode is compiled for a GPU")
    bench.need_s(40.0, "FlexAttention compiles")
    from torch.nn.attention.flex_attention import flex_attention

    heads, num_seqs, context = heads_of(bench), 16, 4096
    pool, batch, q = case(bench, heads, [context] * num_seqs, [1] * num_seqs)
    ours = attend_s(bench, "paged_decode", heads, pool, batch, q)
    keys, values = (each.contiguous() for each in gathered(pool, 0, batch, context))
    compiled: Callable[..., Any] = torch.compile(flex_attention)
    query = q.view(num_seqs, heads.num_heads, 1, heads.head_dim)
    theirs = bench.seconds(lambda: compiled(query, keys, values, enable_gqa=True), graph=False)
    bench.report.figures["flex_over_ours"] = {"16 x 4096": theirs / ours}


def copy_bandwidth(bench: Bench) -> float:
    """Bytes a second that a large copy in device memory reads and writes, together."""
    num_bytes = min(8 << 30, bench.free_bytes() // 4)
    source = bench.empty(num_bytes, dtype=torch.uint8).zero_()
    target = torch.empty_like(source)
    rate = 2 * num_bytes / bench.seconds(lambda: target.copy_(source))
    bench.report.figures["copy_bandwidth"] = rate
    return rate


def case(
    bench: Bench, heads: Heads, contexts: list[int], queries: list[int],
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, PagedBatch, Tensor]:  # fmt: skip
    """A pool of one layer, just large enough and scattered; a batch; its queries."""
    dtype = dtype or bench.dtype
    pages = sum(-(-context // BLOCK) for context in contexts) + 1
    pool = bench.normal(pages, 1, 2, heads.num_kv_heads, BLOCK, heads.head_dim, dtype=dtype)
    batch = make_batch(bench, contexts, queries, pages, BLOCK)
    return pool, batch, bench.normal(sum(queries), heads.num_heads, heads.head_dim, dtype=dtype)


def attend_s(
    bench: Bench, op: str, heads: Heads, pool: Tensor, batch: PagedBatch, q: Tensor,
    reproducible: bool = True,
) -> float:  # fmt: skip
    kernels, out = bench.kernels(reproducible=reproducible), torch.empty_like(q)
    plan = planned(kernels, batch, pool, heads.num_heads, reproducible, q.dtype)
    attend = getattr(kernels, op)
    scale = heads.head_dim**-0.5
    return bench.seconds(lambda: attend(q, pool, 0, batch, plan, scale, out))


def sdpa_decode_s(
    bench: Bench, heads: Heads, pool: Tensor, batch: PagedBatch, q: Tensor, context: int
) -> tuple[float, float]:
    """(SDPA alone, with the gathering) in seconds."""
    query = q.view(len(q), heads.num_heads, 1, heads.head_dim)
    keys, values = (each.contiguous() for each in gathered(pool, 0, batch, context))

    def whole() -> Tensor:
        found = gathered(pool, 0, batch, context)
        return F.scaled_dot_product_attention(query, *found, enable_gqa=True)

    alone = bench.seconds(
        lambda: F.scaled_dot_product_attention(query, keys, values, enable_gqa=True)
    )
    return alone, bench.seconds(whole)


def sdpa_prefill_s(
    bench: Bench, heads: Heads, pool: Tensor, batch: PagedBatch, q: Tensor, context: int
) -> float:
    """SDPA over KV that lies ready, its flash kernel where it has one for the case."""
    num_seqs = len(batch.seq_rows)
    keys, values = (each.contiguous() for each in gathered(pool, 0, batch, context))
    query = q.view(num_seqs, -1, heads.num_heads, heads.head_dim).transpose(1, 2).contiguous()
    if query.shape[2] == context:
        return bench.seconds(
            lambda: F.scaled_dot_product_attention(
                query, keys, values, is_causal=True, enable_gqa=True
            )
        )
    return math.nan  # its flash kernel is causal for whole prompts only


def flashinfer_s(
    bench: Bench, heads: Heads, pool: Tensor, batch: PagedBatch, q: Tensor
) -> float | None:
    """Its batched paged decode over the same pages; ``None`` where it is not installed, or does not
    take what we give it."""
    try:
        import flashinfer

        return flashinfer_decode_s(bench, heads, pool, batch, q, flashinfer)
    except ImportError:
        return None  # named once, in ``decode``
    except Exception as error:  # another project's interface, of an unknown version
        bench.report.leave_out("FlashInfer", f"{type(error).__name__}: {error}"[:300])
        return None


def flashinfer_decode_s(
    bench: Bench, heads: Heads, pool: Tensor, batch: PagedBatch, q: Tensor, flashinfer: Any
) -> float:
    lens = batch.context_lens.cpu()
    blocks = (lens + BLOCK - 1) // BLOCK
    table = batch.block_table.cpu()
    pages = torch.cat([table[row, :n] for row, n in enumerate(blocks.tolist(), 1)]).to(bench.place)
    starts = F.pad(blocks.cumsum(0), (1, 0)).int().to(bench.place)
    last = ((lens - 1) % BLOCK + 1).int().to(bench.place)
    workspace = bench.empty(128 << 20, dtype=torch.uint8)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND")
    wrapper.plan(
        starts, pages.int(), last, heads.num_heads, heads.num_kv_heads, heads.head_dim, BLOCK,
        q_data_type=q.dtype, kv_data_type=q.dtype,
    )  # fmt: skip
    cache = pool[:, 0]  # [num_pages, 2, num_kv_heads, block_size, head_dim]
    return bench.seconds(lambda: wrapper.run(q, cache))
