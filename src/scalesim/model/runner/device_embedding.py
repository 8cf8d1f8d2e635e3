"""Embeddings of a step on a device: sums of hidden states.

Steps with embeddings run op by op, not as a graph. The buffers are allocated at the first such
step. Used by ``DeviceSteps``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from scalesim.core import Floats
from scalesim.device.staging import StagingRing
from scalesim.device.streams import Device, Stream


class DeviceEmbeddings:
    """Sums hidden states on a device: at most ``max_spans`` sums per step, each of ``width``
    fp32."""

    def __init__(
        self, device: Device, stream: Stream, num_buffers: int, max_spans: int, width: int
    ) -> None:
        self._stream, self._width = stream, width
        self._ring = StagingRing(device, num_buffers, max_spans * width)
        self._sums = stream.zeros(max_spans, width, dtype=torch.float32)

    def compute(self, spans: Sequence[slice], hidden: Tensor) -> None:
        """Compute the sum over each span, on the device, behind the step. hidden : the hidden
        states of the arranged query tokens, ``[num_tokens, width]``."""
        for index, span in enumerate(spans):
            self._sums[index] = hidden[span].sum(0, dtype=torch.float32)

    def fetch(self, count: int) -> Callable[[], Floats]:
        """Copy the first ``count`` sums to the host. Returns a function that reads them,
        ``[count, width]``, when the copy has ended."""
        num_words, width = count * self._width, self._width
        buffer = self._ring.fetch(self._stream, self._sums, num_words)
        return lambda: buffer.array[:num_words].copy().view(np.float32).reshape(count, width)
