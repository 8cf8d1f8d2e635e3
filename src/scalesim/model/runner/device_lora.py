"""The directory of adapter layouts on the device: where the rank rows of each adapter lie.

The layouts of ``LayoutTable`` are kept in fixed buffers, where captured steps find them. A new
layout is copied in stream order, behind the steps in flight. Used by ``DeviceSteps``.
"""

from __future__ import annotations

from dataclasses import fields

import torch
from scalesim_kernels import LoraDirectory

from scalesim.device.staging import StagingRing
from scalesim.device.streams import Device, Stream
from scalesim.model.adapters.layout import MAX_RANK, NUM_SLICES, LayoutTable, make_directory

FIRST_CAPACITY = 16  # layouts; for 32 layers and rank 64 these take 4 MB
RANKS = (16, 64, MAX_RANK)  # rows per slice; the kernels launch one program for each 16 of them


class DeviceLora:
    """Copies layouts to a device. ``tensors`` is ``None`` until ``reserve``, or until ``update``
    finds a layout."""

    def __init__(
        self, device: Device, stream: Stream, layouts: LayoutTable, num_layers: int
    ) -> None:
        self.tensors: LoraDirectory | None = None
        self._device, self._stream, self._layouts = device, stream, layouts
        self._num_layers = num_layers
        self._capacity = self._rank = self._count = 0
        self._ring: StagingRing | None = None

    def reserve(self) -> None:
        """Make the buffers before there is a layout: what steps of padding are given."""
        if self.tensors is None:
            self._grow(FIRST_CAPACITY, RANKS[0])

    def update(self) -> bool:
        """Copy the layouts that are new. Returns True if graphs must be captured (again): at the
        first layout, and when the buffers were replaced, which graphs captured before read. That
        happens when the number of layouts outgrows a power of two or their ranks one of ``RANKS``;
        then ``update`` waits for the steps in flight."""
        count = len(self._layouts.layouts)
        fresh = self._layouts.layouts[self._count : count]
        rank = max((layout.a_offsets.shape[2] for layout in fresh), default=0)
        moved = count > self._capacity or rank > self._rank
        changed = moved or (count > 0 and self._count == 0)
        if moved:
            self._grow(count, rank)
        for index in range(self._count, count):
            self._send(index)
        self._count = count
        return changed

    def _grow(self, count: int, rank: int) -> None:
        self._stream.record().synchronize()  # steps in flight read the old ones
        self._capacity = max(FIRST_CAPACITY, 1 << (count - 1).bit_length())
        self._rank = next(rank_ for rank_ in RANKS if rank_ >= max(rank, self._rank))
        self._count = 0
        slices = (self._capacity, self._num_layers, NUM_SLICES)

        def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            # not zeros: another stream would write them, perhaps after the copies of this one
            return torch.empty(shape, dtype=dtype, device=self._device.place)

        self.tensors = LoraDirectory(
            empty(*slices, self._rank, dtype=torch.int64),
            empty(*slices, self._rank, dtype=torch.int64),
            empty(*slices, dtype=torch.int32),
            empty(*slices, dtype=torch.float32),
        )
        words = self._num_layers * NUM_SLICES * (4 * self._rank + 2)
        self._ring = StagingRing(self._device, 2, words)

    def _send(self, index: int) -> None:
        assert self._ring is not None and self.tensors is not None
        directory = make_directory(self._layouts.layouts[index : index + 1], self._rank)
        buffer, end = self._ring.take(), 0
        for field in fields(LoraDirectory):
            source = getattr(directory, field.name)[0]
            staged = buffer.tensor[end : end + source.nbytes].view(source.dtype).view(source.shape)
            staged.copy_(source)
            self._stream.copy(getattr(self.tensors, field.name)[index], staged)
            end += source.nbytes
        buffer.fence = self._stream.record()
