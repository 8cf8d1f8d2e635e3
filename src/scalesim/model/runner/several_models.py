"""Several models on one pool: a runner that computes each model's sequences in turn, within one
step.

The engine's own model has its weights beside the pool. Those of the others lie in pages: a batch
says, for each sequence, which model it runs on and where in the block table the first page of each
part of its weights stands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from scalesim.batch import Batch, LaunchedStep, Runner, StepOutput
from scalesim.core import Int32s, Int64s
from scalesim.model.layers.decoder import Decoder
from scalesim.model.paged_weights import PagedModel
from scalesim.model.runner.batch_parts import BatchPart, Finish, joined


class PartRunner(Protocol):
    """Computes the sequences of one model, of a vocabulary of ``vocab_size``."""

    vocab_size: int

    def start(self, batch: Batch) -> Finish:
        """Compute ``batch``, or submit it; its pages and block table are as they should be."""
        ...


class PagedRunner(PartRunner, Protocol):
    """The runner of a model whose weights lie in pages."""

    def use(self, model: Decoder) -> None:
        """``model`` is the same one with its weights elsewhere, from the next batch on."""
        ...


class OwnRunner(PartRunner, Runner, Protocol):
    """The runner of the engine's own model. ``table`` is the block table, ``[rows, max_blocks]``,
    as the newest launch has it."""

    table: Int32s

    def launch_with(self, batch: Batch, start: Callable[[Batch], Finish]) -> LaunchedStep:
        """``launch``, where ``start`` computes the step's sequences once the block table and the
        copies of the batch are applied."""
        ...


class ModelRunners:
    """A ``batch.Runner``: ``own`` for the engine's own model, and a ``PagedRunner`` for each that
    was added, by number from 1 on."""

    def __init__(self, own: OwnRunner) -> None:
        self.own, self.steps_in_flight = own, own.steps_in_flight
        self._added: dict[int, tuple[PagedRunner, PagedModel]] = {}

    def __len__(self) -> int:
        """The number of models, with the engine's own."""
        return 1 + len(self._added)

    def add(self, number: int, runner: PagedRunner, paged: PagedModel) -> None:
        """Run ``paged`` by ``runner``, which shares the block table of the engine's own. From any
        thread, before a batch names the model."""
        self._added[number] = runner, paged

    def remove(self, number: int) -> None:
        """Forget a model, which no later batch names."""
        del self._added[number]

    def launch(self, batch: Batch) -> LaunchedStep:
        if batch.weights is None:
            return self.own.launch(batch)
        return self.own.launch_with(batch, self._start)

    def collect(self, step: LaunchedStep) -> StepOutput:
        return self.own.collect(step)

    def _start(self, batch: Batch) -> Finish:
        assert batch.weights is not None
        numbers = batch.weights.layouts
        parts = []
        for number in np.unique(numbers).tolist():
            seqs = np.flatnonzero(numbers == number)
            part, runner = BatchPart(batch, seqs), self._runner(number, batch.weights.rows, seqs)
            parts.append((part, runner.start(part.batch(runner.vocab_size))))
        return lambda: joined(batch, [(part, finish()) for part, finish in parts])

    def _runner(self, number: int, rows: Int32s, seqs: Int64s) -> PartRunner:
        """The runner of model ``number``, with the weights where the batch says."""
        if number == 0:
            return self.own
        runner, paged = self._added[number]
        if paged.move_to(self.own.table[rows[seqs[0]], : paged.num_parts].tolist()):
            runner.use(paged.model)
        return runner
