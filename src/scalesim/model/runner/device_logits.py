"""Logits processors on a device: penalties, biases and masks, applied behind a step.

The step itself, captured or not, samples all rows from their unchanged logits; for the rows with a
processor it only takes the largest, which is quick. Behind it, these rows are adjusted and sampled
again. So the captured graphs need no variants, and steps without processors cost nothing. Used by
``DeviceSteps``.
"""

from __future__ import annotations

import numpy as np
import torch
from scalesim_kernels import Adjustments, KernelSet
from torch import Tensor

from scalesim.batch import Batch
from scalesim.batch_options import LogitsBatch
from scalesim.device.streams import Device, Stream
from scalesim.model.runner.arrange import Arranged
from scalesim.model.runner.extra_inputs import PackedInputs
from scalesim.model.runner.extra_outputs import COLUMNS
from scalesim.model.runner.token_counts import first_counts


class DeviceLogits:
    """Adjusts logits on a device. ``num_slots`` includes the dummy slot.

    The token counts (4 bytes per slot and token of the vocabulary) are allocated at the first
    penalty.
    """

    def __init__(
        self, device: Device, stream: Stream, num_buffers: int, num_slots: int, vocab_size: int
    ) -> None:
        self._stream, self._shape = stream, (num_slots, vocab_size)
        self._inputs = PackedInputs(device, stream, num_buffers)
        self._counts: Tensor = stream.zeros(0, vocab_size, dtype=torch.int32)

    def send(self, batch: Batch, adjust: LogitsBatch, arranged: Arranged) -> tuple[Tensor, ...]:
        """Send the inputs of ``compute``, and return them."""
        if adjust.begins and not len(self._counts):
            self._counts = self._stream.zeros(*self._shape, dtype=torch.int32)
        sampling, given = arranged.sampling, batch.sampling
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
            given.temperatures[adjust.seqs],
            given.top_ks[adjust.seqs],
            given.top_ps[adjust.seqs],
            given.keys[adjust.seqs].view(np.int32).reshape(-1, 2),
            batch.positions[batch.query_start[adjust.seqs + 1] - 1] + 1,
            *(getattr(adjust, name) for name in COLUMNS),
        ]
        return tuple(self._inputs.send(arrays))

    def compute(
        self, inputs: tuple[Tensor, ...], logits: Tensor, outcome: Tensor, last_token: Tensor,
        kernels: KernelSet,
    ) -> None:  # fmt: skip
        """Adjust and sample again, on the device. logits : the step's, ``[num_samples, vocab]``;
        not changed. outcome, last_token : the step's samples, by row of the logits and by slot;
        overwritten for the adjusted rows."""
        rows, slots, begin_slots, count_slots, ids, values, *more = inputs
        temperatures, top_ks, top_ps, keys, positions, *columns = more
        counts = self._counts
        if len(begin_slots):
            counts.index_fill_(0, begin_slots.long(), 0)
            counts.view(-1).index_copy_(0, self._places(count_slots, ids), values)
        given = dict(zip(COLUMNS, columns, strict=True))
        changes = Adjustments(
            rows=rows, temperatures=temperatures, slots=slots, counts=counts, **given
        )
        changed = kernels.adjust_logits(logits, changes)
        keys = keys.view(torch.int64).view(-1)
        tokens = kernels.sample(changed, temperatures, top_ks, top_ps, keys, positions)
        tokens = torch.where(outcome.index_select(0, rows) < 0, -1, tokens)  # not finite
        outcome.index_copy_(0, rows.long(), tokens)
        sound = tokens.clamp(min=0)
        last_token.index_copy_(0, slots.long(), sound)
        if len(counts):
            counts.view(-1).index_add_(0, self._places(slots, sound), (tokens >= 0).int() * 2)

    def _places(self, slots: Tensor, ids: Tensor) -> Tensor:
        return slots.long() * self._shape[1] + ids
