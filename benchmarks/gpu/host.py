"""``python -m benchmarks.gpu.host``: host time of a GPU's steps, measured without a GPU.

The real runner and the real Triton launchers, over a driver that launches nothing and streams that
do nothing but run what they are given; captured steps replay nothing. So what is left is what the
host does for a step: arrangement, packing, and one launch a kernel or a graph. Widths are small,
layers are those of an 8B model: launching does not depend on widths.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # kernels are compiled here, for a GPU that is not there

import numpy as np
import torch
from scalesim_kernels import select
from scalesim_kernels.compile_only import TARGETS, compiled

from benchmarks.gpu.turns import TINY
from scalesim.batch import Batch, SamplingBatch
from scalesim.device.streams import Event, Fences, Stream, Work
from scalesim.memory.geometry import PageGeometry
from scalesim.model.checkpoint.loader import load_model
from scalesim.model.runner.cuda_runner import CudaRunner
from scalesim.model.runner.settings import RunnerSettings
from tests.model_folders import write_config

SHAPE = replace(
    TINY, num_layers=32, hidden_size=256, intermediate_size=512, head_dim=64, dtype="bfloat16"
)
DECODES, CHUNKS, CHUNK = 12, 2, 32


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

    def copy_all(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        for dst, src in pairs:
            self.copy(dst, src)

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


def batch(decodes: int, chunks: int) -> Batch:
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
    runner = CudaRunner(model, kernels, pool, NoDevice(), Fences(), settings)
    runner.warm_up((CHUNK,))
    return runner


def step_s(runner: CudaRunner, step: Batch, repeats: int) -> float:
    """Processor seconds of a step, the median."""
    found = []
    for _ in range(repeats + 3):
        begin = time.process_time()
        runner.collect(runner.launch(step))
        found.append(time.process_time() - begin)
    return statistics.median(found[3:])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.host", description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    steps = {
        f"{DECODES} decodes": batch(DECODES, 0),
        f"{DECODES} decodes and {CHUNKS} chunks of {CHUNK}": batch(DECODES, CHUNKS),
    }
    torch.set_num_threads(1)
    with compiled(TARGETS["sm_90"]):
        runners = {"kernel by kernel": runner_for(False), "as a graph": runner_for(True)}
        for name, step in steps.items():
            for how, runner in runners.items():
                print(f"{name}, {how}: {1e6 * step_s(runner, step, repeats):.0f} µs", flush=True)


if __name__ == "__main__":
    main()
