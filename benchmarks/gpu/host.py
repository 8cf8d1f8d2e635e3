"""``python -m benchmarks.gpu.host``: host time of a GPU's steps, measured without a GPU.

The real runner and the real Triton launchers, over a driver that launches nothing and streams that
do nothing but run what they are given; captured steps replay nothing. So what is left is what the
host does for a step: arrangement, packing, and one launch a kernel or a graph. Widths are small,
layers are those of an 8B model: launching does not depend on widths. The link's copies go to a
function that copies nothing, in the place of the CUDA runtime's.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # kernels are compiled here, for a GPU that is not there

import numpy as np
import torch
import triton
from scalesim_kernels import select
from scalesim_kernels.compile_only import TARGETS, compiled

from benchmarks.gpu.turns import TINY
from scalesim.batch import Batch, SamplingBatch
from scalesim.batch_options import AttachmentBatch
from scalesim.device.row_copies import copy_rows, typed
from scalesim.device.streams import Event, Fences, Stream, Work
from scalesim.memory.geometry import PageGeometry
from scalesim.memory.links.cuda_link import CudaLink
from scalesim.memory.links.link import Copies
from scalesim.model.adapters.layout import LayoutTable, LoraLayout, lora_sites
from scalesim.model.checkpoint.loader import load_model
from scalesim.model.runner.cuda_runner import CudaRunner
from scalesim.model.runner.settings import RunnerSettings
from tests.model_folders import write_config

SHAPE = replace(
    TINY, num_layers=32, hidden_size=256, intermediate_size=512, head_dim=64, dtype="bfloat16"
)
DECODES, CHUNKS, CHUNK, RANK = 12, 2, 32, 16
PIECES = 400  # single pages, scattered on both sides
# Takes what a copy takes, copies nothing and returns 0 for two different addresses.
COPIES_NOTHING = typed(ctypes.CDLL(None).pthread_equal)


class Reached:
    """An event that is reached."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_s(self, earlier: Event) -> float:
        return 0.0


class Immediate:
    """A stream that runs its work when it is given."""

    def submit(self, work: Work) -> None:
        with torch.inference_mode():
            work()

    def copy(self, dst: Any, src: Any) -> None:
        dst.copy_(src)

    def copy_rows(self, dst: Any, src: Any, rows: Sequence[tuple[int, int, int]]) -> None:
        copy_rows(COPIES_NOTHING, dst, src, rows, 0)

    def zeros(self, *shape: int, dtype: Any) -> Any:
        return torch.zeros(shape, dtype=dtype)

    def record(self, *, timed: bool = False) -> Reached:
        return Reached()

    def wait(self, event: Event) -> None:
        pass


class NoDevice:
    """A device without a device. A captured step does nothing when it is replayed."""

    place = "cpu"

    def stream(self, name: str) -> Immediate:
        return Immediate()

    def settle(self) -> None:
        pass

    def capture(self, stream: Stream, work: Work) -> Work:
        return lambda: None

    def pinned(self, num_bytes: int) -> Any:
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def pause(self) -> None:
        pass

    def free_bytes(self) -> tuple[int, int]:
        return 1 << 40, 1 << 40

    def registrar(self) -> Any:
        raise NotImplementedError("nothing is pinned")


def batch(decodes: int, chunks: int, adapters: bool) -> Batch:
    """A step in which each sequence has a rank-16 adapter of its own, if any has one."""
    counts = np.array([1] * decodes + [CHUNK] * chunks, np.int32)
    num_seqs, none = len(counts), np.zeros(0, np.int32)
    zeros = np.zeros(num_seqs, np.int32)
    positions = [np.arange(100, 100 + count) for count in counts]
    return Batch(
        step=0, token_ids=np.ones(int(counts.sum()), np.int32),
        positions=np.concatenate(positions).astype(np.int32),
        query_start=np.concatenate(([0], np.cumsum(counts))).astype(np.int32),
        rows=np.arange(1, num_seqs + 1, dtype=np.int32),
        slots=np.arange(num_seqs, dtype=np.int32), sample=np.ones(num_seqs, np.bool_),
        sampling=SamplingBatch(
            zeros.astype(np.float32), zeros, zeros.astype(np.float32) + 1, zeros.astype(np.uint64)
        ),
        table_rows=none, table_cols=none, table_pages=none, page_copies=none.reshape(0, 2),
        adapters=AttachmentBatch(16 + np.arange(1, num_seqs + 1, dtype=np.int32), zeros, zeros)
        if adapters else None,
    )  # fmt: skip


def runner_for(graphs: bool) -> CudaRunner:
    with tempfile.TemporaryDirectory() as folder:
        write_config(Path(folder), SHAPE)
        loaded = load_model(folder, dummy_weights=True)
    kernels = select("triton")
    sample = kernels.sample  # what nothing computes must still be a token
    kernels = replace(kernels, sample=lambda *args: sample(*args).zero_())
    geometry = PageGeometry(SHAPE.num_layers, SHAPE.num_kv_heads, SHAPE.head_dim, 16, 2)
    pool = torch.zeros((40, *geometry.shape), dtype=loaded.model.dtype)
    settings = RunnerSettings(16, 128, 33, 16, graphs=graphs)
    model = loaded.model.packed(kernels)
    layouts, layers = LayoutTable(), SHAPE.num_layers
    layouts.number(
        LoraLayout(
            lora_sites(SHAPE), ((RANK,) * 7,) * layers, ((1.0,) * 7,) * layers, pool[0].numel()
        )
    )
    runner = CudaRunner(model, kernels, pool, NoDevice(), Fences(), settings, layouts)
    runner.warm_up((CHUNK,))
    return runner


def least_s(work: Callable[[], object], repeats: int) -> float:
    """Processor seconds of ``work``, the least of ``repeats``: what others do here only adds."""
    found = []
    for _ in range(repeats + 3):
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return min(found[3:])


def launches(work: Callable[[], object]) -> int:
    """How many kernels of Triton ``work`` launches."""
    driver = triton.runtime.driver.active
    before = driver.num_launches
    work()
    return int(driver.num_launches - before)


def steps(repeats: int) -> None:
    layers = SHAPE.num_layers
    kinds = {
        f"{DECODES} decodes": (DECODES, 0),
        f"{DECODES} decodes and {CHUNKS} chunks of {CHUNK}": (DECODES, CHUNKS),
    }
    print(f"A step of {layers} layers: processor time of the host, the least of {repeats}")
    with compiled(TARGETS["sm_90"]):
        apart, captured = runner_for(False), runner_for(True)
        for adapters in (False, True):
            for name, counts in kinds.items():
                step = batch(*counts, adapters)

                def run(runner: CudaRunner, step: Batch = step) -> None:
                    runner.collect(runner.launch(step))

                run(apart)
                run(captured)  # the first with an adapter captures
                before = least_s(lambda: run(apart), repeats)
                after = least_s(lambda: run(captured), repeats)
                number = launches(lambda: run(apart))
                print(
                    f"{name}{', an adapter each' * adapters}: {number} launches "
                    f"({number / layers:.1f} a layer), {1e6 * before:.0f} µs kernel by kernel, "
                    f"{1e6 * after:.0f} µs as a graph: {before / after:.0f} times less",
                    flush=True,
                )


class Pages:
    """Host pages that nothing registers."""

    seam_pages = 1 << 20

    def __init__(self, num_pages: int) -> None:
        self.pages = torch.zeros((num_pages, 64), dtype=torch.uint8)

    def close(self) -> None:
        pass


def pieces(repeats: int) -> None:
    """Scattered single pages, from the call of ``submit`` to the ticket's end."""
    order = np.random.default_rng(0).permutation(2 * PIECES)[:PIECES].tolist()
    copies = Copies("in", order, order[::-1])
    device, pages = NoDevice(), Pages(2 * PIECES)
    through_torch = [
        (row, source) for row, source in zip(copies.device_pages, copies.host_pages, strict=True)
    ]

    def torch_copies() -> None:
        for row, source in through_torch:
            pages.pages[row : row + 1].copy_(pages.pages[source : source + 1], non_blocking=True)

    link = CudaLink(device, torch.zeros_like(pages.pages), pages, Fences())

    def link_copies() -> None:
        link.submit(copies)
        while link.wait(0.0):
            link.poll()

    before, after = (least_s(work, repeats) / PIECES for work in (torch_copies, link_copies))
    print(f"\nCopies of {len(copies.pieces())} scattered pages: the host's time of each")
    print(f"slices and copies by torch, on a CPU: {1e6 * before:.2f} µs")
    print(f"all that the link does, by the runtime's function: {1e6 * after:.2f} µs")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.host", description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    steps(repeats)
    pieces(repeats)


if __name__ == "__main__":
    main()
