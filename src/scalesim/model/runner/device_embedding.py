"""Sums of hidden states of a step on a device, for embeddings.

Used by ``CudaRunner`` in steps that ask for them, which run op by op, not as a graph. Its buffers
are made when the first one does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from scalesim.batch import Batch, EmbeddingBatch
from scalesim.core import Floats
from scalesim.device.staging import Staged, StagingRing
from scalesim.device.streams import Device, Stream
from scalesim.model.runner.arrange import Arranged


class DeviceEmbeddings:
    """``max_spans``: the most sums of a step; each of ``width`` fp32."""

    def __init__(
        self, device: Device, stream: Stream, num_buffers: int, max_spans: int, width: int
    ) -> None:
        self._stream, self._width = stream, width
        self._ring = StagingRing(device, num_buffers, max_spans * width)
        self._sums = torch.zeros((max_spans, width), device=device.place)

    @staticmethod
    def rows(batch: Batch, arranged: Arranged, asked: EmbeddingBatch) -> list[slice]:
        """Where each span stands among the arranged query tokens: a sequence's stay together."""
        row_of = np.empty(batch.num_tokens, np.int64)
        row_of[arranged.source] = np.arange(batch.num_tokens)
        firsts = row_of[asked.spans[:, 0]].tolist()
        counts = (asked.spans[:, 1] - asked.spans[:, 0]).tolist()
        return [slice(first, first + count) for first, count in zip(firsts, counts, strict=True)]

    def compute(self, rows: Sequence[slice], hidden: Tensor) -> None:
        """On the device, behind the step. hidden : of its query tokens, arranged."""
        for index, row in enumerate(rows):
            self._sums[index] = hidden[row].sum(0, dtype=torch.float32)

    def fetch(self, count: int) -> Staged:
        buffer = self._ring.take()
        words = count * self._width
        flat = self._sums.view(-1)
        self._stream.copy(buffer.tensor.view(torch.float32)[:words], flat[:words])
        return buffer

    def read(self, count: int, buffer: Staged) -> Floats:
        """``[count, width]``, when the copy has ended."""
        found = buffer.array[: count * self._width].copy()
        return found.view(np.float32).reshape(count, self._width)
