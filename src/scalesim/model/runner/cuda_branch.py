"""A model whose weights lie in pages, on a CUDA device: its part of a step is a branch of the
compute stream, on a stream that all such models share.

The branch begins behind the step's changes of the block table, and the step ends behind the branch.
Such a model has graphs of decodes alone, each captured when it is first needed where the weights
lie; on a stream of its own, so that a further model may be warmed up meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scalesim_kernels import KernelSet
from torch import Tensor

from scalesim.batch import Batch
from scalesim.device.streams import Device, Work
from scalesim.model.adapters.layout import LayoutTable
from scalesim.model.layers.decoder import Decoder
from scalesim.model.runner.batch_parts import Finish
from scalesim.model.runner.device_steps import DeviceSteps
from scalesim.model.runner.device_table import DeviceTable
from scalesim.model.runner.settings import RunnerSettings
from scalesim.model.runner.step_inputs import StepShape


class CudaBranch(DeviceSteps):
    """A ``PagedRunner``. ``device_table`` is that of the ``CudaRunner`` that launches the steps."""

    def __init__(
        self,
        model: Decoder,
        kernels: KernelSet,
        pool: Tensor,
        device: Device,
        settings: RunnerSettings,
        device_table: DeviceTable,
        layouts: LayoutTable | None = None,
    ) -> None:
        stream, captures = device.stream("models"), device.stream("capture")
        super().__init__(
            model, kernels, pool, device, settings, layouts, device_table, stream, captures,
            mixed=False,
        )  # fmt: skip
        self._compute_stream = device.stream("compute")

    def use(self, model: Decoder) -> None:
        """``model`` is the same one with its weights elsewhere, from the next batch on."""
        self._model = model
        if len(self.graphs):
            self._stream.record().synchronize()  # one may be running
            self.graphs.forget()

    def start(self, batch: Batch) -> Finish:
        self._stream.wait(self._compute_stream.record())
        try:
            return super().start(batch)
        finally:
            self._compute_stream.wait(self._stream.record())

    def _prepare_graphs(self, shapes: Sequence[StepShape]) -> None:
        self.graphs.forget()  # captured when they are needed

    def _graph(self, shape: StepShape) -> Work | None:
        found = super()._graph(shape)
        plain = replace(shape, num_entries=0, num_groups=0)
        if found is None and plain in self.graphs.shapes:
            self.graphs.capture([shape])
            found = super()._graph(shape)
        return found
