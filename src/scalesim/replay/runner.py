"""The virtual runner: computes only the duration of each step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from scalesim.batch import Batch, LaunchedStep, Runner, StepOutput
from scalesim.batch_options import AttachmentBatch
from scalesim.core import Int64s
from scalesim.memory.links.virtual_link import VirtualLink
from scalesim.replay.hardware import CostModel, StepWork

ModelWork: TypeAlias = "tuple[int, StepWork]"
"""The number of a model, and what a step computes of it."""


@dataclass(slots=True)
class Spent:
    """Virtual seconds and work since the start; ``flops`` and ``read_bytes`` as in the cost
    model."""

    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    read_bytes: float = 0.0


class VirtualRunner:
    """A runner around ``inner``, which supplies the tokens. Each step advances the link's clock by
    the step's duration in the cost models ``costs``, by number of the model; the sequences of each
    model are computed in turn.

    The first ``first_tokens`` tokens of every sequence stand for an adapter's pages: they cost
    their reading, and their transfer if they have to be loaded.
    """

    def __init__(
        self,
        inner: Runner,
        link: VirtualLink,
        costs: Sequence[CostModel],
        first_tokens: int = 0,
    ) -> None:
        assert inner.steps_in_flight == 1, "virtual steps end where they are launched"
        self.steps_in_flight = 1
        self.spent = Spent()
        self.ended_s: dict[int, float] = {}  # by step of the engine
        self.inner, self._link, self._costs = inner, link, costs
        self._first_tokens = first_tokens

    def launch(self, batch: Batch) -> LaunchedStep:
        step = self.inner.launch(batch)
        self.pass_time(*self._work(batch))
        self.ended_s[batch.step] = self._link.now_s
        return step

    def collect(self, step: LaunchedStep) -> StepOutput:
        return self.inner.collect(step)

    def pass_time(self, works: Iterable[ModelWork], fetched_bytes: float = 0.0) -> None:
        """Advance the clock by a step of ``works``, before which ``fetched_bytes`` come over the
        link."""
        seconds, spent = fetched_bytes / self._link.rate("in"), self.spent
        for number, work in works:
            cost = self._costs[number]
            seconds += cost.step_s(work)
            spent.tokens += work.num_tokens
            spent.flops += cost.flops(work)
            spent.read_bytes += cost.read_bytes(work)
        spent.steps += 1
        spent.seconds += seconds
        self._link.advance_to(self._link.now_s + seconds)

    def decode_work(self, num_seqs: int, context_tokens: int) -> StepWork:
        """The work of one decode step of ``num_seqs`` sequences with ``context_tokens`` in sum."""
        seen = context_tokens - num_seqs * self._first_tokens
        return StepWork(num_seqs, context_tokens, seen)

    def _work(self, batch: Batch) -> tuple[list[ModelWork], float]:
        counts = np.diff(batch.query_start).astype(np.int64)
        ends = batch.positions[batch.query_start[1:] - 1].astype(np.int64) + 1
        groups = by_model(batch.weights, batch.num_seqs)
        if not self._first_tokens and batch.num_tokens == batch.num_seqs:
            works = [
                (number, self.decode_work(len(ends[seqs]), int(ends[seqs].sum())))
                for number, seqs in groups
            ]
            return works, 0.0
        first = self._first_tokens
        contexts = np.maximum(ends - first, 0)
        real = contexts - np.maximum(ends - counts - first, 0)  # query tokens outside the adapter
        pairs = real * contexts - real * (real - 1) // 2
        works = [
            (number, StepWork(*(int(each[seqs].sum()) for each in (real, ends, pairs))))
            for number, seqs in groups
        ]
        fetched = sum(
            int((counts - real)[seqs].sum()) * self._costs[number].model.token_bytes
            for number, seqs in groups
        )
        return works, float(fetched)


def by_model(weights: AttachmentBatch | None, num_seqs: int) -> list[tuple[int, slice | Int64s]]:
    """(number of a model, its sequences) for each model of a step of ``num_seqs``."""
    if weights is None:
        return [(0, slice(num_seqs))]
    numbers = weights.layouts
    return [(number, np.flatnonzero(numbers == number)) for number in np.unique(numbers).tolist()]
