"""Logprobs of a step on a device.

Steps with logprobs run op by op, not as a graph. The buffers are allocated at the first such step.
Used by ``DeviceSteps``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scalesim_kernels import KernelSet
from torch import Tensor

from scalesim.batch import NO_TOKEN, Batch
from scalesim.batch_options import MAX_LOGPROBS, LogprobsBatch, Scores
from scalesim.device.staging import StagingRing
from scalesim.device.streams import Device, Stream
from scalesim.model.layers.decoder import Decoder
from scalesim.model.runner.arrange import Arranged
from scalesim.model.runner.extra_inputs import PackedInputs

SCORED_ROWS = 64  # logits made at a time: 39 MB at a vocabulary of 152 k


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """The query tokens to score, on the device and padded; ``num_rows`` of them are real.

    For each: its row among the step's query tokens, the sample that is its target if ``targets`` is
    ``NO_TOKEN``, and its target token. The results have ``top_k`` likeliest tokens for each.
    """

    rows: Tensor
    samples: Tensor
    targets: Tensor
    num_rows: int
    top_k: int

    @property
    def num_words(self) -> int:
        """Size of the results, in int32s."""
        return len(self.rows) * (1 + 2 * self.top_k)

    def fields(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of the results: the targets' logprobs ``[n]``, the ids of the likeliest tokens and
        their logprobs, both ``[n, top_k]``."""
        count = len(self.rows)
        ids, top = flat[count : self.num_words].view(2, count, self.top_k)
        return flat[:count], ids, top


class DeviceLogprobs:
    """Computes logprobs on a device. ``max_rows`` is the most query tokens of a step, padded."""

    def __init__(self, device: Device, stream: Stream, num_buffers: int, max_rows: int) -> None:
        self._stream = stream
        capacity = max_rows * (1 + 2 * MAX_LOGPROBS)
        self._inputs = PackedInputs(device, stream, num_buffers)
        self._ring = StagingRing(device, num_buffers, capacity)
        self._results = stream.zeros(capacity, dtype=torch.int32)

    def send(
        self, batch: Batch, arranged: Arranged, asked: LogprobsBatch, padded: int
    ) -> ScoredRows:
        """Send the rows to score to the device, padded to ``padded`` rows."""
        samples_of = np.zeros(batch.num_seqs, np.int32)
        samples_of[arranged.sampling] = np.arange(len(arranged.picked))
        seqs = np.searchsorted(batch.query_start, asked.tokens, side="right") - 1
        count = len(asked.tokens)
        fields = np.zeros((3, padded), np.int32)
        fields[:, :count] = arranged.row_of[asked.tokens], samples_of[seqs], asked.targets
        rows, samples, targets = self._inputs.send(list(fields))
        return ScoredRows(rows, samples, targets, count, asked.top_k)

    def compute(
        self,
        scored: ScoredRows,
        hidden: Tensor,
        sampled: Tensor,
        model: Decoder,
        kernels: KernelSet,
    ) -> None:
        """Compute the logprobs on the device, behind the step. hidden : the hidden states of the
        step's query tokens, ``[num_tokens, hidden_size]``. sampled : the step's samples."""
        samples = sampled.index_select(0, scored.samples)
        targets = torch.where(scored.targets == NO_TOKEN, samples, scored.targets).clamp(min=0)
        for start in range(0, len(targets), SCORED_ROWS):
            part = slice(start, min(len(targets), start + SCORED_ROWS))
            logits = model.logits(hidden.index_select(0, scored.rows[part]), kernels)
            parts = kernels.log_probs(logits, targets[part], scored.top_k)
            for field, result in zip(scored.fields(self._results), parts, strict=True):
                field[part] = result.view(torch.int32)

    def fetch(self, scored: ScoredRows) -> Callable[[], Scores]:
        """Copy the results to the host. Returns a function that reads them when the copy has
        ended."""
        buffer = self._ring.fetch(self._stream, self._results, scored.num_words)

        def read() -> Scores:
            found = torch.from_numpy(buffer.array[: scored.num_words].copy())
            logprobs, ids, top = (field[: scored.num_rows] for field in scored.fields(found))
            floats = torch.float32
            return Scores(logprobs.view(floats).numpy(), ids.numpy(), top.view(floats).numpy())

        return read
