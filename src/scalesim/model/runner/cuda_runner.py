"""The runner for CUDA devices: two steps in flight, short steps as CUDA graphs.

``launch`` only submits work to the compute stream, and ``collect`` waits until the outcome was
copied back. ``engine.backends`` makes the runner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scalesim_kernels import KernelSet
from torch import Tensor

from scalesim.batch import Batch, LaunchedStep, StepOutput
from scalesim.core import Fence, Int32s
from scalesim.device.staging import StagingRing
from scalesim.device.streams import Device, Event, Fences
from scalesim.errors import ConfigError
from scalesim.foreign import Foreign
from scalesim.model.adapters.layout import LayoutTable
from scalesim.model.layers.decoder import Decoder
from scalesim.model.runner.batch_parts import Finish
from scalesim.model.runner.device_steps import STEPS_IN_FLIGHT, DeviceSteps
from scalesim.model.runner.device_table import DeviceTable
from scalesim.model.runner.settings import RunnerSettings

_COPIES_A_SEQ = 1  # most pages of a sequence that begin as copies of shared pages


@dataclass(frozen=True, slots=True)
class _StepInFlight:
    ended: Event
    finish: Finish


class CudaRunner(DeviceSteps):
    """Runs the steps of the engine's own model, and launches those of which others have a part.

    ``fences`` is told of each launched and each collected step. ``table`` is the block table on the
    host, ``[rows, max_blocks]``, as the newest launch has it.
    """

    steps_in_flight = STEPS_IN_FLIGHT

    def __init__(
        self,
        model: Decoder,
        kernels: KernelSet,
        pool: Tensor,
        device: Device,
        fences: Fences,
        settings: RunnerSettings,
        layouts: LayoutTable | None = None,
    ) -> None:
        stream, buffers = device.stream("compute"), STEPS_IN_FLIGHT + 1
        rows = settings.max_num_rows, settings.max_blocks_per_row
        table = DeviceTable(device, stream, *rows, buffers)
        super().__init__(
            model, kernels, pool, device, settings, layouts, table, stream, stream, mixed=True
        )
        self.table, self._fences = table.on_host, fences
        words = 4 * _COPIES_A_SEQ * settings.max_num_seqs
        self._copies, self._arrived = StagingRing(device, buffers, words), self._int32s(words)

    @property
    def num_waits(self) -> int:
        """How often ``launch`` waited for the device to read a staging buffer: 0, unless very many
        entries of the block table change at once."""
        rings = (self._staging, self._outcomes, self.device_table.ring)
        return sum(ring.num_waits for ring in rings)

    def warm_up(self, token_counts: Sequence[int]) -> None:
        super().warm_up(token_counts)
        self._copy_pages(np.array([[1, 0]], np.int32))  # to the null page
        self._stream.record().synchronize()

    def launch(self, batch: Batch) -> LaunchedStep:
        return self.launch_with(batch, self.start)

    def launch_with(self, batch: Batch, start: Callable[[Batch], Finish]) -> LaunchedStep:
        """``launch``, where ``start`` submits the step's sequences behind the changes of the block
        table and the copies of the batch."""
        try:
            self.device_table.apply(batch)
            self._copy_pages(batch.page_copies)
            finish = start(batch)
            ended = self._stream.record()
            self._fences.launched(batch.step, ended)
        except BaseException:
            # Part of the step may be running without a fence, while its pages are freed.
            with Foreign():
                self._stream.record().synchronize()
            raise
        flight = _StepInFlight(ended, finish)
        return LaunchedStep(batch.step, Fence("compute", batch.step), flight)

    def collect(self, step: LaunchedStep) -> StepOutput:
        flight = step.handle
        assert isinstance(flight, _StepInFlight)
        flight.ended.synchronize()
        self._fences.collected(step.step)
        return flight.finish()

    def _copy_pages(self, copies: Int32s) -> None:
        """Submit the copies of whole pages, ``[n, 2]`` (source, destination)."""
        if not (count := len(copies)):
            return
        buffer, words = self._copies.take(), 4 * count
        buffer.array[:words].view(np.int64)[:] = copies.T.ravel()
        self._copies.send(self._stream, buffer, self._arrived, words)
        source, target = self._arrived[:words].view(torch.int64).view(2, count)
        self._stream.submit(lambda: self._kernels.copy_pages(self._pool, source, target))


def check_dtype(dtype: torch.dtype) -> None:
    """Raise ``ConfigError`` if the GPU's kernels do not support weights of ``dtype``."""
    known = (torch.float16, torch.bfloat16, torch.float32)
    if dtype not in known:
        names = ", ".join(str(choice).removeprefix("torch.") for choice in known)
        raise ConfigError(f"dtype {dtype} on a GPU: supported are {names}")
