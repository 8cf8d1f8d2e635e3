"""Logits processors on a device: penalties, biases and masks, applied behind a step.

The step itself, captured or not, samples all rows from their unchanged logits. Behind it, the rows
with a processor are adjusted and sampled again. So the captured graphs need no variants, and steps
without processors cost nothing. Used by ``CudaRunner``.
"""

from __future__ import annotations

import numpy as np
import torch
from scalesim_kernels import Adjustments, KernelSet
from torch import Tensor

from scalesim.batch import Batch
from scalesim.batch_options import LogitsBatch
from scalesim.core import Int64s
from scalesim.device.streams import Device, Stream
from scalesim.model.runner.extra_inputs import PackedInputs
from scalesim.model.runner.extra_outputs import COLUMNS
from scalesim.model.runner.step_inputs import StepTensors
from scalesim.model.runner.token_counts import first_counts


class DeviceLogits:
    """Adjusts logits on a device. ``num_slots`` includes the dummy slot.

    The token counts (4 bytes per slot and token of the vocabulary) are allocated at the first
    penalty.
    """

    def __init__(
        self, device: Device, stream: Stream, num_buffers: int, num_slots: int, vocab_size: int
    ) -> None:
        self._place, self._shape = device.place, (num_slots, vocab_size)
        self._inputs = PackedInputs(device, stream, num_buffers)
        self._counts = torch.zeros((0, vocab_size), dtype=torch.int32, device=device.place)

    def send(self, batch: Batch, adjust: LogitsBatch, sampling: Int64s) -> tuple[Tensor, ...]:
        """Send the inputs of ``compute``, and return them. sampling : the batch's sequences that
        sample, ``[num_samples]``, in the order of the rows of the logits."""
        if adjust.begins and not len(self._counts):
            self._counts = torch.zeros(self._shape, dtype=torch.int32, device=self._place)
        row_of = np.zeros(batch.num_seqs, np.int32)
        row_of[sampling] = np.arange(len(sampling))
        first = [first_counts(tokens, prompt_len) for _, tokens, prompt_len in adjust.begins]
        slots = np.array([slot for slot, _, _ in adjust.begins], np.int32)
        none = np.zeros(0, np.int32)
        arrays = [
            row_of[adjust.seqs],
            batch.slots[adjust.seqs],
            slots,
            np.repeat(slots, [len(ids) for ids, _ in first]),
            np.concatenate([none, *(ids for ids, _ in first)]),
            np.concatenate([none, *(counts for _, counts in first)]),
            *(getattr(adjust, name) for name in COLUMNS),
        ]
        return tuple(self._inputs.send(arrays))

    def compute(
        self, inputs: tuple[Tensor, ...], step: StepTensors, logits: Tensor, outcome: Tensor,
        last_token: Tensor, kernels: KernelSet,
    ) -> None:  # fmt: skip
        """Adjust and sample again, on the device. logits : the step's, ``[num_samples, vocab]``;
        not changed. outcome, last_token : the step's samples, by row of the logits and by slot;
        overwritten for the adjusted rows."""
        rows, slots, begin_slots, count_slots, ids, values, *columns = inputs
        counts = self._counts
        if len(begin_slots):
            counts.index_fill_(0, begin_slots.long(), 0)
            counts.view(-1).index_copy_(0, self._places(count_slots, ids), values)
        sampling = (step.temperatures, step.top_ks, step.top_ps, step.keys, step.sample_positions)
        temperatures, *others = (column.index_select(0, rows) for column in sampling)
        given = dict(zip(COLUMNS, columns, strict=True))
        changes = Adjustments(
            rows=rows, temperatures=temperatures, slots=slots, counts=counts, **given
        )
        changed = kernels.adjust_logits(logits, changes)
        tokens = kernels.sample(changed, temperatures, *others)
        tokens = torch.where(outcome.index_select(0, rows) < 0, -1, tokens)  # not finite
        outcome.index_copy_(0, rows.long(), tokens)
        sound = tokens.clamp(min=0)
        last_token.index_copy_(0, slots.long(), sound)
        if len(counts):
            counts.view(-1).index_add_(0, self._places(slots, sound), (tokens >= 0).int() * 2)

    def _places(self, slots: Tensor, ids: Tensor) -> Tensor:
        return slots.long() * self._shape[1] + ids
