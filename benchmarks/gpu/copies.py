"""What the bus can do, and what of it the link gets: pinned copies by piece size, then ``CudaLink``
on scattered runs of pages, alone and beside a decode that it must not slow down.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from benchmarks.gpu.bench import Bench, SkipError
from benchmarks.gpu.paged import Heads, heads_of, make_batch
from scalesim.device.streams import Fences
from scalesim.memory.links.cuda_link import CudaLink
from scalesim.memory.links.link import Copies, Direction
from scalesim.memory.pools.pinned import PinnedPages

GB = 10**9
PIECES = (64 << 10, 256 << 10, 1 << 20, 2 << 20, 16 << 20)
WAYS: tuple[tuple[Direction, ...], ...] = (("in",), ("out",), ("in", "out"))
BLOCK = 16


@dataclass(frozen=True)
class Sizes:
    """``moved_bytes`` go each way in one measurement, out of pools twice as large."""

    page_bytes: int
    moved_bytes: int

    @property
    def num_pages(self) -> int:
        return 2 * self.moved_bytes // self.page_bytes


def run(bench: Bench) -> None:
    heads = heads_of(bench)
    page_bytes = heads.page_elements(BLOCK) * bench.dtype.itemsize
    sizes = Sizes(page_bytes, (2 << 30) if bench.on_gpu else 16 * page_bytes)
    if bench.free_host_bytes() < 4 * sizes.moved_bytes:
        raise SkipError(f"{4 * sizes.moved_bytes} bytes of host memory are needed")
    host = PinnedPages(sizes.num_pages, page_bytes, bench.device.registrar())
    pages = bench.empty(sizes.num_pages, page_bytes, dtype=host.pages.dtype)
    best = ceilings(bench, pages, host.pages, sizes)
    link = CudaLink(bench.device, pages, host, Fences())
    try:
        swap(bench, link, sizes, best)
        bench.need_s(3.0, "decode beside a swap")
        beside_decode(bench, link, heads, pages, sizes)
    finally:
        link.close()


def ceilings(
    bench: Bench, pages: Tensor, host: Tensor, sizes: Sizes
) -> dict[tuple[Direction, ...], float]:
    """Bytes a second, both ways added up, of plain copies; the best piece size counts."""
    table = bench.report.table("Pinned copies by piece size", ["piece KiB", "ways", "GB/s"])
    flat, on_host = pages.view(-1), host.view(-1)
    best = dict.fromkeys(WAYS, 0.0)
    for piece in PIECES[::-1] if bench.on_gpu else (sizes.page_bytes,):
        if bench.left_s() < 0.5 * bench.share_s and all(best.values()):
            bench.report.leave_out(f"copies of {piece >> 10} KiB", bench.no_time())
            continue
        for ways in WAYS:
            count = min(sizes.moved_bytes // piece, 4096)  # small pieces: fewer bytes

            def move(
                ways: tuple[Direction, ...] = ways, piece: int = piece, n: int = count
            ) -> None:
                for index in range(n):
                    for way in ways:  # the two ways have pieces of their own
                        first = 2 * index * piece + (piece if way == "out" else 0)
                        part = slice(first, first + piece)
                        ends = (flat[part], on_host[part])
                        dst, src = ends if way == "in" else ends[::-1]
                        bench.device.stream(way).copy(dst, src)

            seconds = elapsed(bench, ways, move)
            rate = len(ways) * count * piece / seconds
            best[ways] = max(best[ways], rate)
            table.add(piece / 1024, "+".join(ways), rate / GB)
    bench.report.figures["copy_ceilings"] = {"+".join(w): r for w, r in best.items()}
    return best


def elapsed(bench: Bench, streams: Sequence[str], work: Callable[[], None]) -> float:
    """Host seconds from the first copy given to ``streams`` to the last one landed; the second of
    two runs."""
    for _ in range(2):
        bench.synchronize()
        start = time.perf_counter()
        work()
        for name in streams:
            bench.device.stream(name).record().synchronize()
        seconds = time.perf_counter() - start
    return seconds


def scattered(sizes: Sizes, way: Direction, seed: int) -> Copies:
    """Runs of 1 to 64 pages, as a pool in use hands them out; the ways share no page."""
    rng = np.random.default_rng(seed)
    half, count = sizes.num_pages // 2, sizes.moved_bytes // sizes.page_bytes
    starts = np.cumsum(rng.integers(1, 65, count))
    runs = np.split(np.arange(half), starts[starts < half])
    first = 0 if way == "in" else half
    sides = []
    for _ in range(2):
        order = rng.permutation(len(runs))
        sides.append((np.concatenate([runs[i] for i in order]) + first)[:count].tolist())
    return Copies(way, sides[0], sides[1])


def carry(link: CudaLink, work: list[Copies]) -> None:
    """Submit everything, and look at the link until it is done, as an engine's loop does."""
    for copies in work:
        link.submit(copies)
    while any(link.queued_bytes(copies.direction) for copies in work):
        link.wait(1.0)
        link.poll()


def swap(
    bench: Bench, link: CudaLink, sizes: Sizes, best: dict[tuple[Direction, ...], float]
) -> None:
    table = bench.report.table(
        "Swap by CudaLink, runs of 1 to 64 pages", ["ways", "GB/s", "of the ceiling"]
    )
    rates = {}
    for ways in WAYS:
        work = [scattered(sizes, way, bench.seed) for way in ways]
        carry(link, work)
        start = time.perf_counter()
        carry(link, work)
        rates[ways] = len(ways) * sizes.moved_bytes / (time.perf_counter() - start)
        share = rates[ways] / best[ways]
        table.add("+".join(ways), rates[ways] / GB, share)
        if len(ways) == 1:
            bench.report.hold("floor", f"swap {ways[0]}: share of the ceiling", share, least=0.9)
    both, one = rates[WAYS[2]], max(rates[WAYS[0]], rates[WAYS[1]])
    bench.report.hold("floor", "swap, both ways over one way", both / one, least=1.5)


def beside_decode(bench: Bench, link: CudaLink, heads: Heads, pages: Tensor, sizes: Sizes) -> None:
    """Decode's attention of all layers, with an idle link and with one that carries both ways."""
    kernels, num_seqs = bench.kernels(), 16 if bench.on_gpu else 2
    shape = (heads.num_layers, 2, heads.num_kv_heads, BLOCK, heads.head_dim)
    pool = bench.normal(sizes.num_pages, *shape)
    context = min(2048, (sizes.num_pages - 1) // num_seqs * BLOCK)
    batch = make_batch(bench, [context] * num_seqs, [1] * num_seqs, sizes.num_pages, BLOCK)
    q = bench.normal(num_seqs, heads.num_heads, heads.head_dim)
    out = bench.empty(*q.shape)
    plan = kernels.plan(batch, pool, heads.num_heads, True)
    stream = bench.device.stream("compute")

    def decode() -> None:
        for layer in range(heads.num_layers):
            kernels.paged_decode(q, pool, layer, batch, plan, heads.head_dim**-0.5, out)

    bench.synchronize()  # what was made so far, on the stream that torch makes things on
    stream.submit(decode)
    stream.record().synchronize()
    run = bench.device.capture(stream, decode)

    def seconds() -> float:
        began = stream.record(timed=True)
        for _ in range(8):
            stream.submit(run)
        ended = stream.record(timed=True)
        while not ended.query():
            link.poll()
        ended.synchronize()
        return ended.elapsed_s(began)

    seconds()
    alone = min(seconds() for _ in range(3))
    work = [scattered(sizes, way, bench.seed) for way in WAYS[2]]
    beside = []
    for _ in range(3):
        for copies in work:
            link.submit(copies)
        beside.append(seconds())
        while link.queued_bytes("in") or link.queued_bytes("out"):
            link.wait(1.0)
            link.poll()
    bench.report.figures["decode_beside_swap"] = {"alone_s": alone, "beside_s": beside}
    slower = sorted(beside)[1] / alone - 1
    bench.report.hold("goal", "decode slowed by swapping both ways", slower, most=0.05)
