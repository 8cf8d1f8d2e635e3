"""Packed inputs: arrays of any sizes, sent to the device in one copy.

For the runner's rarer steps, which need more than the fixed inputs. The buffers grow to the largest
size needed so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scalesim.device.staging import StagingRing
from scalesim.device.streams import Device, Stream

_ALIGN = 64  # int32s, as for the fixed inputs
_FIRST_WORDS = 1 << 14
_KINDS = {"int32": torch.int32, "float32": torch.float32}


class PackedInputs:
    """One device buffer for the arrays of a step.

    The views that ``send`` returns are valid until the step ``num_buffers - 1`` later is sent: work
    on ``stream`` runs in order, so it reads the views before they are overwritten.
    """

    def __init__(self, device: Device, stream: Stream, num_buffers: int) -> None:
        self._device, self._stream, self._num_buffers = device, stream, num_buffers
        self._old: list[Any] = []  # buffers that were too small: a step in flight may read them
        self._grow(_FIRST_WORDS)

    def _grow(self, num_words: int) -> None:
        self._ring = StagingRing(self._device, self._num_buffers, num_words)
        self._there = self._stream.zeros(num_words, dtype=torch.int32)
        self._old.append((self._ring, self._there))

    def send(self, arrays: Sequence[npt.NDArray[Any]]) -> list[Tensor]:
        """Each array (int32 or float32, of any shape) as a tensor of its type and shape on the
        device."""
        starts = np.cumsum([0] + [-(-array.size // _ALIGN) * _ALIGN for array in arrays]).tolist()
        total = starts[-1]
        if total > self._ring.capacity:
            self._grow(1 << total.bit_length())
        buffer = self._ring.take()
        for start, array in zip(starts, arrays, strict=False):
            buffer.array[start : start + array.size] = (
                np.ascontiguousarray(array).view(np.int32).ravel()
            )
        self._ring.send(self._stream, buffer, self._there, total)
        return [
            self._there[start : start + array.size].view(_KINDS[array.dtype.name]).view(array.shape)
            for start, array in zip(starts, arrays, strict=False)
        ]
