"""LoRA kernels over pages: many adapters at once, against ``torch.bmm`` and against the bytes.

One layer's q, k, v: the time of shrink and expand for 1 to 256 distinct adapters, decode (a token
each) and prefill. The peer gathers dense slots, all of one rank, and multiplies them by ``bmm``.
The floor is the adapters' bytes at the device's own copy bandwidth.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scalesim_kernels import KernelSet, LoraBatch, LoraDirectory, LoraSite, select
from scalesim_kernels.lora_tiles import lora_tiles
from torch import Tensor

from benchmarks.report import Report, table
from scalesim.model.adapters.layout import LoraLayout, make_directory

COUNTS, RANKS = (1, 8, 32, 64, 256), (8, 16, 64)
FLOOR, GOAL, MANY = 0.5, 0.7, 32
PAGE_BYTES = 2 << 20


@dataclass(frozen=True)
class Work:
    """``count`` adapters of ``rank`` in pages, and the same weights as dense slots."""

    site: LoraSite
    lora: LoraBatch
    pool: Tensor
    x: Tensor
    out: Tensor
    dense_a: Tensor  # [count, 3 * rank, in]
    dense_b: tuple[Tensor, ...]  # each [count, rank, out]
    slots: Tensor  # [count]
    tokens_each: int

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.dense_a, *self.dense_b))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", default="cpu", help="cpu or cuda")
    add("--hidden", type=int, default=4096, help="width of the layer; k and v have a quarter")
    add("--prefill", type=int, default=64, help="tokens of each adapter in the prefill")
    add("--repeats", type=int, default=20)
    add("--counts", type=int, nargs="+", default=COUNTS, help="of distinct adapters")
    add("--ranks", type=int, nargs="+", default=RANKS)


def run(options: argparse.Namespace) -> Report:
    hidden = 256 if options.quick else options.hidden
    counts, ranks = ((1, 3), (8,)) if options.quick else (options.counts, options.ranks)
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    kernels = select(options.device)
    report = Report("lora")
    bandwidth = copy_bandwidth(device, 1 << 22 if options.quick else 1 << 28)
    rows = []
    for phase, each in (("decode", 1), ("prefill", 8 if options.quick else options.prefill)):
        for count in counts:
            for rank in ranks:
                work = make_work(count, rank, each, hidden, device, dtype, kernels.row_multiple)
                ours = seconds(lambda work=work: paged(kernels, work), device, options.repeats)
                peer = seconds(lambda work=work: dense(work), device, options.repeats)
                share = work.num_bytes / bandwidth / ours
                name = f"{phase}, {count} adapters, rank {rank}"
                figures = (1e6 * ours, 1e6 * peer, peer / ours, 100 * share)
                rows.append([name, *(f"{figure:.3g}" for figure in figures)])
                report.figures[f"{phase}/{count}/{rank}"] = {
                    "ours_s": ours, "bmm_s": peer, "share_of_copy_bandwidth": share,
                }  # fmt: skip
                if phase == "decode" and count >= MANY and device.type == "cuda":
                    report.verdict(f"{count} adapters, rank {rank}: share of copy bandwidth",
                                   share, least=FLOOR)  # fmt: skip
    columns = ["", "ours, µs", "bmm on gathered slots, µs", "bmm ÷ ours", "% of copy bandwidth"]
    report.tables.append(table(f"q, k, v of one layer, {dtype} on {device}", columns, rows))
    report.notes.append(
        f"copies run at {bandwidth / 1e9:.0f} GB/s, reads and writes counted; the goal for decode "
        f"with {MANY} adapters and more on a GPU is {100 * GOAL:.0f} %"
    )
    return report


def make_work(
    count: int, rank: int, each: int, hidden: int, device: torch.device, dtype: torch.dtype,
    multiple: int,
) -> Work:  # fmt: skip
    site = LoraSite(0, hidden, (hidden, hidden // 4, hidden // 4))
    page_elems = PAGE_BYTES // dtype.itemsize
    layout = LoraLayout((site,), ((rank,) * 3 + (0,) * 4,), ((1.0,) * 7,), page_elems)
    shape = (count * layout.num_pages + 1, 1, 2, 1, 16, page_elems // 32)
    pool = torch.randn(shape, dtype=dtype, device=device)
    order = torch.randperm(count * layout.num_pages, dtype=torch.int32) + 1
    block_table = torch.zeros((count + 1, layout.num_pages), dtype=torch.int32)
    block_table[1:] = order.view(count, -1)
    room = -(-each // multiple) * multiple
    entry = torch.arange(count)[:, None] * each + torch.arange(room) % each
    directory = make_directory([layout])
    lora = LoraBatch(
        LoraDirectory(*(t.to(device) for t in (directory.a_offsets, directory.b_offsets,
                                               directory.ranks, directory.scales))),
        block_table.to(device), entry.flatten().int().to(device),
        (torch.arange(count + 1) * room).int().to(device),
        torch.full((count,), each, dtype=torch.int32, device=device),
        torch.arange(1, count + 1, dtype=torch.int32, device=device),
        torch.zeros(count, dtype=torch.int32, device=device),
        torch.from_numpy(lora_tiles(
            np.arange(count) * room, [each] * count, np.arange(1, count + 1), [0] * count
        )).to(device),
    )  # fmt: skip
    dense_a = torch.randn(count, 3 * rank, hidden, dtype=dtype, device=device)
    dense_b = tuple(
        torch.randn(count, rank, width, dtype=dtype, device=device) for width in site.out_widths
    )
    x = torch.randn(count * each, hidden, dtype=dtype, device=device)
    out = torch.zeros(count * each, sum(site.out_widths), dtype=dtype, device=device)
    slots = torch.randperm(count, device=device)
    return Work(site, lora, pool, x, out, dense_a, dense_b, slots, each)


def paged(kernels: KernelSet, work: Work) -> None:
    h = kernels.lora_shrink(work.x, work.pool, 0, work.site, work.lora)
    kernels.lora_expand(h, work.pool, 0, work.site, work.lora, work.out)


def dense(work: Work) -> None:
    """What one does without paged kernels: gather every group's slot, then batched products."""
    x = work.x.view(len(work.slots), work.tokens_each, -1)
    h = torch.bmm(x, work.dense_a[work.slots].transpose(1, 2))
    rank = h.shape[2] // 3
    parts = [
        torch.bmm(h[:, :, i * rank : (i + 1) * rank], b[work.slots])
        for i, b in enumerate(work.dense_b)
    ]
    work.out.add_(torch.cat(parts, dim=2).view_as(work.out))


def copy_bandwidth(device: torch.device, num_bytes: int) -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / seconds(lambda: target.copy_(source), device, 10)


def seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median of single calls, after two that are not counted; on a CPU, of processor time."""
    times, clock = [], time.perf_counter if device.type == "cuda" else time.process_time
    for _ in range(repeats + 2):
        wait(device)
        begin = clock()
        call()
        wait(device)
        times.append(clock() - begin)
    return max(statistics.median(times[2:]), 1e-9)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
