"""The layout's one risk: a page holds all layers, so every layer walks the whole pool's addresses.

Decode over pools of growing size, page-major (one page, all layers) against layer-major (each layer
a pool of its own) and against a few layers a page, in the same memory, pages scattered alike.
"""

from __future__ import annotations

from torch import Tensor

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.paged import Heads, heads_of, make_batch
from benchmarks.gpu.report import Table

GB = 10**9
SIZES = (4 * GB, 32 * GB, 100 * GB)
BLOCK = 16
MAX_LOSS = 0.05


def run(bench: Bench) -> None:
    heads = heads_of(bench)
    table = bench.report.table(
        "Decode over pools of growing size (a step's attention, all layers)",
        ["pool GB", "batch", "context", "layers a page", "ms", "GB/s", "of layer-major's time"],
    )
    free = int(0.85 * bench.free_bytes())
    sizes = sorted({min(size, free) for size in SIZES}) if bench.on_gpu else [1 << 20]
    for size in sizes:
        what = f"pool of {size / GB:.0f} GB"
        if bench.left_s() < 5.0:
            bench.report.leave_out(what, bench.no_time())
            continue
        worst = measure(bench, heads, size, table)
        bench.report.hold(
            "floor", f"page-major decode over {size / GB:.3g} GB, of layer-major's time",
            worst, most=1 + MAX_LOSS,
        )  # fmt: skip


def measure(bench: Bench, heads: Heads, size: int, table: Table) -> float:
    """Page-major's time over layer-major's."""
    page_elements = heads.page_elements(BLOCK)
    num_pages = size // (page_elements * bench.dtype.itemsize)
    flat = bench.normal(num_pages * page_elements)
    num_seqs = 64 if bench.on_gpu else 2
    context = min(4096, (num_pages - 1) // num_seqs * BLOCK)
    times = {}
    for layers in (1, 4, heads.num_layers):
        if heads.num_layers % layers:
            continue
        groups = heads.num_layers // layers
        shape = (groups, num_pages, layers, 2, heads.num_kv_heads, BLOCK, heads.head_dim)
        times[layers] = step_s(bench, heads, flat.view(shape), context, num_seqs)
    for layers, seconds in times.items():
        num_bytes = num_seqs * heads.num_layers * heads.kv_bytes(context, bench.dtype.itemsize)
        table.add(
            size / GB, num_seqs, context, layers, 1e3 * seconds, num_bytes / seconds / GB,
            seconds / times[1],
        )  # fmt: skip
    return times[heads.num_layers] / times[1]


def step_s(bench: Bench, heads: Heads, pools: Tensor, context: int, num_seqs: int) -> float:
    """pools : ``[groups, num_pages, layers, 2, num_kv_heads, block_size, head_dim]``; each group is
    a pool of the kernels' layout."""
    kernels = bench.kernels()
    batch = make_batch(bench, [context] * num_seqs, [1] * num_seqs, pools.shape[1], BLOCK)
    q = bench.normal(num_seqs, heads.num_heads, heads.head_dim)
    out = bench.empty(*q.shape)
    plan = kernels.plan(batch, pools[0], heads.num_heads, True)

    def step() -> None:
        for pool in pools:
            for layer in range(pool.shape[1]):
                kernels.paged_decode(q, pool, layer, batch, plan, heads.head_dim**-0.5, out)

    return bench.seconds(step)
