"""What every section of the GPU benchmark is given: a device, kernels, a clock and a budget.

On a CPU (``--device cpu``) the same code runs over tiny sizes on streams without a GPU: to see that
it works, not to measure.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from scalesim_kernels import KernelSet, select
from torch import Tensor

from benchmarks.gpu.report import Report
from scalesim.device.streams import Device
from scalesim.memory.pools.pinned import available_host_bytes

Work = Callable[[], object]


class SkipError(Exception):
    """A section, or a part of it, cannot run here; its text says why."""


@dataclass
class Bench:
    """``until_s`` is when the running section should be over, in ``time.perf_counter`` seconds."""

    place: str
    tiny: bool
    device: Device
    report: Report
    seed: int = 0
    schedules: int = 50
    until_s: float = 0.0
    share_s: float = math.inf  # of the section, from its begin

    @property
    def on_gpu(self) -> bool:
        return self.place.startswith("cuda")

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.on_gpu else torch.float32

    def kernels(self, *, reproducible: bool = True) -> KernelSet:
        return select("cuda" if self.on_gpu else "cpu", reproducible)

    def left_s(self) -> float:
        """Seconds of the section's time; there is no end to it where nothing is measured."""
        return math.inf if self.tiny else self.until_s - time.perf_counter()

    def no_time(self) -> str:
        return f"{self.left_s():.0f} s left of the section's time"

    def need_s(self, seconds: float, what: str) -> None:
        """Raise ``SkipError`` where less is left of the section's time."""
        if self.left_s() < seconds:
            raise SkipError(f"{what}: {self.no_time()}")

    def free_bytes(self) -> int:
        """Of the device; little on a CPU, which only goes through the motions."""
        return self.device.free_bytes()[0] if self.on_gpu else 1 << 26

    def free_host_bytes(self) -> int:
        return available_host_bytes() if self.on_gpu else 1 << 26

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.place)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.empty(*shape, dtype=dtype).normal_()

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.place)

    def seconds(self, work: Work, *, graph: bool = True, budget_s: float = 0.15) -> float:
        """Median seconds of ``work``, given to the device back to back; as a CUDA graph where it
        can be, so that launching is not measured."""
        with torch.inference_mode():
            for _ in range(2):
                work()
            self.synchronize()
            if not self.on_gpu:
                start = time.perf_counter()
                work()
                return max(time.perf_counter() - start, 1e-9)
            run = self._captured(work) if graph else work
            once = self._elapsed(run, 1)
            count = max(1, min(100, int(budget_s / 5 / max(once, 1e-6))))
            return statistics.median(self._elapsed(run, count) / count for _ in range(5))

    def _captured(self, work: Work) -> Work:
        stream, found = torch.cuda.Stream(self.place), torch.cuda.CUDAGraph()
        with torch.cuda.graph(found, stream=stream):
            work()
        return found.replay

    def _elapsed(self, work: Work, count: int) -> float:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        for _ in range(count):
            work()
        ended.record()
        ended.synchronize()
        return float(began.elapsed_time(ended)) * 1e-3


class Compilations:
    """Counts what Triton compiles, or takes from its cache of files, while it is watched.

    ``None`` where this Triton does not say (older than 3.4), or there is none.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._knobs: Any = None

    def __enter__(self) -> Compilations:
        try:
            from triton import knobs
        except ImportError:
            return self
        if hasattr(knobs.compilation, "listener"):
            self._knobs = knobs.compilation
            self._knobs.listener = self._heard
        return self

    def __exit__(self, *exception: object) -> None:
        if self._knobs is not None:
            self._knobs.listener = None

    @property
    def count(self) -> int | None:
        return None if self._knobs is None else len(self.names)

    def _heard(self, *, src: Any = None, **rest: Any) -> None:
        self.names.append(str(getattr(src, "name", src)))
