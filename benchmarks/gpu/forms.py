"""Decode with KV in fp8, and with a prefix that all sequences share: what half the bytes and fewer
reads are worth, beside what arithmetic expects.
"""

from __future__ import annotations

import torch
from scalesim_kernels import PagedBatch
from scalesim_kernels.conformance.paged import same_bits
from scalesim_kernels.conformance.problems import planned
from scalesim_kernels.float8 import FLOAT8, narrowed
from torch import Tensor

from benchmarks.gpu import roofline
from benchmarks.gpu.attention import BLOCK, attend_s, case
from benchmarks.gpu.bench import Bench, SkipError
from benchmarks.gpu.paged import Heads, heads_of

TINY_PREFIXES = ((3, 600, 0), (3, 600, 512))
AT_LEAST = 4096 * 64  # positions of all sequences, from which on bytes bound the time


def run(bench: Bench) -> None:
    heads = heads_of(bench)
    table = bench.report.table(
        "Decode, one layer: KV in fp8, and a prefix that all sequences share",
        ["batch", "context", "shared", "µs", "expected", "µs, fp8", "expected, fp8"],
    )
    worst, plain = 0.0, {}
    for num_seqs, context, shared in roofline.PREFIXES if bench.on_gpu else TINY_PREFIXES:
        if bench.left_s() < 2.0:
            bench.report.leave_out(f"decode {num_seqs} × {context}, fp8", bench.no_time())
            continue
        pool, batch, q = case(bench, heads, [context] * num_seqs, [1] * num_seqs)
        share_pages(batch, shared)
        took = [
            attend_s(bench, "paged_decode", heads, kept, batch, q)
            for kept in (pool, narrowed(pool, FLOAT8))
        ]
        expected = [
            roofline.decode(num_seqs, context, itemsize=size, shared=shared).seconds
            for size in (2, 1)
        ]
        pairs = [1e6 * each for pair in zip(took, expected, strict=True) for each in pair]
        table.add(num_seqs, context, shared, *pairs)
        if shared == 0 and num_seqs * context >= AT_LEAST:
            worst = max(worst, took[1] / took[0])
        plain.setdefault((num_seqs, context), took[0])
        if shared and (num_seqs, context) in plain:
            bench.report.figures[f"sharing {shared} of {num_seqs} x {context}"] = (
                took[0] / plain[num_seqs, context]
            )
    if not table.rows:
        raise SkipError(f"forms: {bench.no_time()}")
    if worst:
        bench.report.hold("goal", "decode with KV in fp8, of its time without", worst, most=0.6)


def share_pages(batch: PagedBatch, shared: int) -> None:
    """Give all sequences the first one's pages for the first ``shared`` positions."""
    batch.block_table[2:, : shared // BLOCK] = batch.block_table[1, : shared // BLOCK].clone()


def shared_prefix(bench: Bench, heads: Heads, dtype: torch.dtype) -> tuple[int, int]:
    """(sequences, how many of them have other bits when they share pages than with copies)."""
    kernels, num_seqs, context, shared = bench.kernels(), 7, 1100, 1024
    pool, batch, q = case(bench, heads, [context] * num_seqs, [1] * num_seqs, dtype)
    found: list[Tensor] = []
    for kept in (0, shared):
        if not kept:  # the same content on pages of their own
            for row in range(2, num_seqs + 1):
                own = batch.block_table[row, : shared // BLOCK].long()
                pool[own] = pool[batch.block_table[1, : shared // BLOCK].long()]
        share_pages(batch, kept)
        out = torch.zeros_like(q)
        plan = planned(kernels, batch, pool, heads.num_heads, True, dtype)
        kernels.paged_decode(q, pool, 0, batch, plan, heads.head_dim**-0.5, out)
        found.append(out.cpu())
    return num_seqs, sum(not same_bits(a, b) for a, b in zip(*found, strict=True))
