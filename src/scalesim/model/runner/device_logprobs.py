"""Log-probabilities of a step on a device: which rows go there, and what comes back.

Used by ``CudaRunner`` in steps that ask for them, which run op by op, not as a graph. Its buffers
are made when the first one does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scalesim_kernels import KernelSet
from torch import Tensor

from scalesim.batch import MAX_LOGPROBS, NO_TOKEN, Batch, LogprobsBatch, Scores
from scalesim.core import Int32s
from scalesim.device.staging import Staged, StagingRing
from scalesim.device.streams import Device, Stream
from scalesim.model.layers.decoder import Decoder
from scalesim.model.runner.arrange import Arranged

SCORED_ROWS = 64  # logits made at a time: 39 MB at a vocabulary of 152 k


@dataclass(frozen=True, slots=True)
class ScoreShape:
    """How many query tokens are scored, and with padding; and how many tokens come with each."""

    num_rows: int
    num_padded: int
    top_k: int

    @property
    def num_words(self) -> int:
        return self.num_padded * (1 + 2 * self.top_k)


class DeviceLogprobs:
    """``max_rows``: the most query tokens of a step, padded."""

    def __init__(self, device: Device, stream: Stream, num_buffers: int, max_rows: int) -> None:
        self._stream = stream
        capacity = max_rows * (1 + 2 * MAX_LOGPROBS)
        self._inputs_ring = StagingRing(device, num_buffers, 3 * max_rows)
        self._results_ring = StagingRing(device, num_buffers, capacity)
        self._inputs = torch.zeros(3 * max_rows, dtype=torch.int32, device=device.place)
        self._results = torch.zeros(capacity, dtype=torch.int32, device=device.place)

    def send(
        self, batch: Batch, arranged: Arranged, asked: LogprobsBatch, padded: int
    ) -> ScoreShape:
        """Give the device the rows to score: where each stands, whose sample is its target (if it
        is one), and its target."""
        row_of = np.empty(batch.num_tokens, np.int32)
        row_of[arranged.source] = np.arange(batch.num_tokens)
        samples_of = np.zeros(batch.num_seqs, np.int32)
        sampling = arranged.order[batch.sample[arranged.order]]
        samples_of[sampling] = np.arange(len(sampling))
        seqs = np.searchsorted(batch.query_start, asked.tokens, side="right") - 1
        buffer = self._inputs_ring.take()
        fields = buffer.array[: 3 * padded].reshape(3, padded)
        fields[:] = 0
        count = len(asked.tokens)
        fields[:, :count] = row_of[asked.tokens], samples_of[seqs], asked.targets
        self._inputs_ring.send(self._stream, buffer, self._inputs, 3 * padded)
        return ScoreShape(count, padded, asked.top_k)

    def compute(
        self, shape: ScoreShape, hidden: Tensor, sampled: Tensor, model: Decoder, kernels: KernelSet
    ) -> None:
        """On the device, behind the step. hidden : of its query tokens. sampled : its samples."""
        count, top_k = shape.num_padded, shape.top_k
        rows, samples, targets = self._inputs[: 3 * count].view(3, count)
        targets = torch.where(targets == NO_TOKEN, sampled.index_select(0, samples), targets)
        targets = targets.clamp(min=0)
        for start in range(0, count, SCORED_ROWS):
            part = slice(start, min(count, start + SCORED_ROWS))
            logits = model.logits(hidden.index_select(0, rows[part]), kernels)
            parts = kernels.log_probs(logits, targets[part], top_k)
            for field, result in zip(self._fields(self._results, shape), parts, strict=True):
                field[part] = result.view(torch.int32)

    def fetch(self, shape: ScoreShape) -> Staged:
        buffer = self._results_ring.take()
        words = shape.num_words
        self._stream.copy(buffer.tensor.view(torch.int32)[:words], self._results[:words])
        return buffer

    def read(self, shape: ScoreShape, buffer: Staged) -> Scores:
        """When the copy has ended."""
        found = torch.from_numpy(buffer.array[: shape.num_words].copy())
        chosen, ids, top = (column[: shape.num_rows] for column in self._fields(found, shape))
        top_ids: Int32s = ids.numpy()
        return Scores(chosen.view(torch.float32).numpy(), top_ids, top.view(torch.float32).numpy())

    @staticmethod
    def _fields(flat: Tensor, shape: ScoreShape) -> tuple[Tensor, Tensor, Tensor]:
        count, top_k = shape.num_padded, shape.top_k
        ids, top = flat[count : shape.num_words].view(2, count, top_k)
        return flat[:count], ids, top
