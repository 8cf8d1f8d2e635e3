"""Models in pages: linear layers on weights in the pool beside the same on plain tensors, and what
moving pages out of a run's way costs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.copies import elapsed
from scalesim.memory.pools.page_access import TensorPages
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.layers.rope import RopeConfig
from scalesim.model.paged_weights import WeightLayout

LEAST_LINEAR = 0.98
ROWS = (1, 16, 64, 2048)
PAGE_BYTES, TINY_PAGE = 192 << 10, 4 << 10  # of 16 tokens of Qwen2.5-0.5B in bf16, 24 layers


def shape(bench: Bench) -> ModelConfig:
    """Qwen2.5-0.5B's widths, two layers."""
    hidden, wide = (896, 4864) if bench.on_gpu else (64, 128)
    return ModelConfig(
        architecture="Qwen2ForCausalLM", vocab_size=1024, hidden_size=hidden,
        intermediate_size=wide, num_layers=2, num_heads=hidden // 64 or 1, num_kv_heads=1,
        head_dim=64, max_position=1024, rms_eps=1e-6, rope=RopeConfig(), qkv_bias=True,
    )  # fmt: skip


def run(bench: Bench) -> None:
    page_bytes = PAGE_BYTES if bench.on_gpu else TINY_PAGE
    layout = WeightLayout(shape(bench), bench.dtype, page_bytes)
    num_pages = 2 * sum(layout.runs) + 8
    pages = bench.empty(num_pages, page_bytes, dtype=torch.uint8).zero_()
    linears(bench, layout, pages)
    compaction(bench, layout, pages)


def linears(bench: Bench, layout: WeightLayout, pages: torch.Tensor) -> None:
    table = bench.report.table(
        "Linear layers on weights in pages", ["layer", "rows", "kernels", "µs", "of a plain one's"]
    )
    heads = np.cumsum([3, *layout.runs])[:-1].tolist()
    layer = layout.view(pages, heads).layers[0]
    worst: dict[str, float] = {}
    for name, kernels in (
        ("reproducible", bench.kernels()), ("vendor's", bench.kernels(reproducible=False)),
    ):  # fmt: skip
        for what, weight in (("qkv", layer.qkv.weight), ("o", layer.o.weight)):
            weight.normal_()
            plain = weight.clone()
            for rows in ROWS if bench.on_gpu else ROWS[:2]:
                bench.need_s(0.5, f"linear {what}, {rows} rows")
                x = bench.normal(rows, weight.shape[1])
                paged_s = bench.seconds(partial(kernels.linear, x, weight))
                plain_s = bench.seconds(partial(kernels.linear, x, plain))
                table.add(what, rows, name, 1e6 * paged_s, plain_s / paged_s)
                worst[name] = min(worst.get(name, 9.0), plain_s / paged_s)
    for name, ratio in worst.items():
        what = f"linear on pages, {name} kernels: speed on a plain tensor"
        bench.report.hold("floor", what, ratio, least=LEAST_LINEAR)


def compaction(bench: Bench, layout: WeightLayout, pages: torch.Tensor) -> None:
    """Moves of as many pages as a layer has: in one piece, and each for itself."""
    table = bench.report.table(
        "Compaction: the pages of a layer are moved", ["pages", "in pieces of", "µs", "GB/s"]
    )
    moves = TensorPages(pages, np.zeros((1, pages.shape[1]), np.uint8), bench.device)
    count = layout.runs[-1]
    together = list(range(count))
    apart = np.random.default_rng(bench.seed).permutation(count).tolist()
    for size, sources in ((count, together), (1, apart)):
        targets = [count + index for index in range(count)]
        work: Callable[[], None] = partial(moves.move, sources, targets)
        seconds = elapsed(bench, ("compute",), work)
        moved = 2 * count * pages.shape[1]  # read and written
        table.add(count, size, 1e6 * seconds, moved / seconds / 1e9)
