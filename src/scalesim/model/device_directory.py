"""Where the rank rows of adapters lie, on the device: the layouts of ``LayoutTable`` in buffers that
stay in their place, so that captured steps find them there; each new layout is copied behind the
steps in flight. Called by ``CudaRunner``.
"""

from __future__ import annotations

from dataclasses import fields

import torch
from scalesim_kernels import LoraDirectory

from scalesim.device.staging import StagingRing
from scalesim.device.streams import Device, Stream
from scalesim.model.adapters.layout import MAX_RANK, NUM_SLICES, LayoutTable, make_directory

FIRST_CAPACITY = 16  # layouts; of Llama-3.1-8B's 32 layers they take 15 MB


class DeviceDirectory:
    """``tensors`` is ``None`` until the first ``update`` that finds a layout. Each has room for
    ``MAX_RANK`` rows, so no adapter moves the others."""

    def __init__(
        self, device: Device, stream: Stream, layouts: LayoutTable, num_layers: int
    ) -> None:
        self.tensors: LoraDirectory | None = None
        self._device, self._stream, self._layouts = device, stream, layouts
        self._shape = (num_layers, NUM_SLICES, MAX_RANK)
        self._capacity = self._count = 0
        self._ring: StagingRing | None = None

    def update(self) -> bool:
        """Have every layout known so far; True if the buffers are new ones: what was captured reads
        others. That happens with the first layout, and when their number outgrows a power of
        two; it waits for the steps in flight."""
        count = len(self._layouts.layouts)
        moved = count > self._capacity
        if moved:
            self._grow(count)
        for index in range(self._count, count):
            self._send(index)
        self._count = count
        return moved

    def _grow(self, count: int) -> None:
        self._stream.record().synchronize()  # steps in flight read the old ones
        self._capacity = max(FIRST_CAPACITY, 1 << (count - 1).bit_length())
        self._count = 0
        num_layers, slices, rank = self._shape

        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros((self._capacity, *shape), dtype=dtype, device=self._device.place)

        offsets = [zeros(num_layers, slices, rank, dtype=torch.int64) for _ in range(2)]
        ranks = zeros(num_layers, slices, dtype=torch.int32)
        self.tensors = LoraDirectory(*offsets, ranks, zeros(*ranks.shape[1:], dtype=torch.float32))
        if self._ring is None:
            self._ring = StagingRing(self._device, 2, num_layers * slices * (4 * rank + 2))

    def _send(self, index: int) -> None:
        assert self._ring is not None and self.tensors is not None
        one = make_directory(self._layouts.layouts[index : index + 1], self._shape[2])
        buffer, end = self._ring.take(), 0
        for field in fields(LoraDirectory):
            source = getattr(one, field.name)[0]
            staged = buffer.tensor[end : end + source.nbytes].view(source.dtype).view(source.shape)
            staged.copy_(source)
            self._stream.copy(getattr(self.tensors, field.name)[index], staged)
            end += source.nbytes
        buffer.fence = self._stream.record()
