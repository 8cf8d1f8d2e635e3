"""Linear layers and sampling alone, beside the vendor's and beside what arithmetic expects."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu import roofline
from benchmarks.gpu.bench import Bench

ROWS = (16, 64, 1, 256, 2048, 8192)


def run(bench: Bench) -> None:
    linears(bench)
    sampling(bench)


def linears(bench: Bench) -> None:
    table = bench.report.table(
        "Reproducible linear layers of an 8B model",
        ["layer", "rows", "µs", "expected µs", "vendor's time over ours"],
    )
    shapes = roofline.LINEARS if bench.on_gpu else {"o": (64, 48)}
    kernels = bench.kernels(reproducible=True)
    for rows in ROWS if bench.on_gpu else (16,):
        for name, (width, num_out) in shapes.items():
            if bench.left_s() < 0.5 * bench.share_s:
                bench.report.leave_out(f"linear {name}, {rows} rows", bench.no_time())
                continue
            x, weight = bench.normal(rows, width), bench.normal(num_out, width)
            packed = kernels.pack_weight(weight)
            ours = bench.seconds(partial(kernels.linear, x, packed))
            theirs = bench.seconds(partial(F.linear, x, weight))
            expected = roofline.linear(rows, width, num_out).seconds
            table.add(name, rows, 1e6 * ours, 1e6 * expected, theirs / ours)


def sampling(bench: Bench) -> None:
    table = bench.report.table(
        "Sampling, a vocabulary of 128 k",
        ["what", "rows", "µs", "expected µs", "sort's time over ours"],
    )
    kernels, vocab = bench.kernels(), roofline.VOCAB if bench.on_gpu else 300
    modes = ((0.0, 0, 1.0), (0.8, 0, 1.0), (0.8, 0, 0.95), (0.8, 40, 0.95))
    for rows in (16, 64) if bench.on_gpu else (2,):
        logits = 3 * bench.normal(rows, vocab, dtype=torch.float32)
        keys = torch.arange(rows, device=bench.place)
        for (what, passes, searches), mode in zip(roofline.SAMPLED, modes, strict=True):
            bench.need_s(0.5, f"sampling, {what}")
            temperature, top_k, top_p = mode
            floats = bench.empty(rows, dtype=torch.float32)
            ints = bench.empty(rows, dtype=torch.int32)
            args = (
                logits, floats.fill_(temperature).clone(), ints.fill_(top_k).clone(),
                floats.fill_(top_p).clone(), keys, ints.fill_(3).clone(),
            )  # fmt: skip
            ours = bench.seconds(partial(kernels.sample, *args))
            theirs = bench.seconds(partial(by_sort, logits, top_p))
            expected = roofline.sample(rows, passes, searches).seconds
            table.add(what, rows, 1e6 * ours, 1e6 * expected, theirs / ours)


def by_sort(logits: Tensor, top_p: float) -> Tensor:
    """Top-p as one writes it in torch; a draw by the exponential trick, as it needs no host."""
    ordered, ids = torch.softmax(logits / 0.8, -1).sort(-1, descending=True)
    kept = ordered * (ordered.cumsum(-1) - ordered < top_p)
    return ids.gather(1, (kept / torch.rand_like(kept).log().neg()).argmax(-1, keepdim=True))
