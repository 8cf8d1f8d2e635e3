"""Several models on one pool: a runner that computes each model's sequences in turn, within one
step.

The engine's own model has its weights beside the pool. Those of the others lie in pages: a batch
says, for each sequence, which model it runs on and where in the block table the first page of each
part of its weights stands.
"""

from __future__ import annotations

import numpy as np

from scalesim.batch import Batch, LaunchedStep, StepOutput
from scalesim.core import Int32s, Int64s
from scalesim.model.paged_weights import PagedModel
from scalesim.model.runner.batch_parts import BatchPart, joined
from scalesim.model.runner.cpu_runner import ModelRunner


class ModelRunners:
    """A ``batch.Runner``: ``own`` for the engine's own model, and a ``ModelRunner`` for each that
    was added, by number from 1 on."""

    steps_in_flight = 1

    def __init__(self, own: ModelRunner) -> None:
        self._own = own
        self._added: dict[int, tuple[ModelRunner, PagedModel]] = {}

    def __len__(self) -> int:
        """The number of models, with the engine's own."""
        return 1 + len(self._added)

    def add(self, number: int, runner: ModelRunner, model: PagedModel) -> None:
        """Run ``model`` by ``runner``, which shares the block table of the engine's own. From any
        thread, before a batch names the model."""
        self._added[number] = runner, model

    def remove(self, number: int) -> None:
        """Forget a model, which no later batch names."""
        del self._added[number]

    def launch(self, batch: Batch) -> LaunchedStep:
        if batch.weights is None:
            return self._own.launch(batch)
        return self._own.launch_with(batch, self._compute)

    def collect(self, step: LaunchedStep) -> StepOutput:
        return self._own.collect(step)

    def _compute(self, batch: Batch) -> StepOutput:
        assert batch.weights is not None
        numbers = batch.weights.layouts
        parts = []
        for number in np.unique(numbers).tolist():
            seqs = np.flatnonzero(numbers == number)
            part, runner = BatchPart(batch, seqs), self._runner(number, batch.weights.rows, seqs)
            parts.append((part, runner.compute(part.batch(runner.vocab_size))))
        return joined(batch, parts)

    def _runner(self, number: int, rows: Int32s, seqs: Int64s) -> ModelRunner:
        """The runner of model ``number``, with the weights where the batch says."""
        if number == 0:
            return self._own
        runner, model = self._added[number]
        model.move_to(self._own.table[rows[seqs[0]], : model.num_parts].tolist())
        return runner
