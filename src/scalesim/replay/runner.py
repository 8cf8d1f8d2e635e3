"""The virtual runner: computes only the duration of each step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalesim.batch import Batch, LaunchedStep, Runner, StepOutput
from scalesim.memory.links.virtual_link import VirtualLink
from scalesim.replay.hardware import CostModel, StepWork


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
    the step's duration in the cost model.

    The first ``first_tokens`` tokens of every sequence stand for an adapter's pages: they cost
    their reading, and their transfer if they have to be loaded.
    """

    def __init__(
        self, inner: Runner, link: VirtualLink, cost: CostModel, first_tokens: int = 0
    ) -> None:
        assert inner.steps_in_flight == 1, "virtual steps end where they are launched"
        self.steps_in_flight = 1
        self.spent = Spent()
        self.ended_s: dict[int, float] = {}  # by step of the engine
        self.inner, self._link, self._cost = inner, link, cost
        self._first_tokens = first_tokens
        self._token_bytes = cost.model.geometry().token_bytes

    def launch(self, batch: Batch) -> LaunchedStep:
        step = self.inner.launch(batch)
        self.pass_time(*self._work(batch))
        self.ended_s[batch.step] = self._link.now_s
        return step

    def collect(self, step: LaunchedStep) -> StepOutput:
        return self.inner.collect(step)

    def pass_time(self, work: StepWork, fetched_bytes: float = 0.0) -> None:
        """Advance the clock by a step of ``work``, before which ``fetched_bytes`` come over the
        link."""
        seconds = self._cost.step_s(work) + fetched_bytes / self._link.rate("in")
        spent = self.spent
        spent.steps += 1
        spent.seconds += seconds
        spent.tokens += work.num_tokens
        spent.flops += self._cost.flops(work)
        spent.read_bytes += self._cost.read_bytes(work)
        self._link.advance_to(self._link.now_s + seconds)

    def decode_work(self, num_seqs: int, context_tokens: int) -> StepWork:
        """The work of one decode step of ``num_seqs`` sequences with ``context_tokens`` in sum."""
        seen = context_tokens - num_seqs * self._first_tokens
        return StepWork(num_seqs, context_tokens, seen)

    def _work(self, batch: Batch) -> tuple[StepWork, float]:
        counts = np.diff(batch.query_start).astype(np.int64)
        ends = batch.positions[batch.query_start[1:] - 1].astype(np.int64) + 1
        if not self._first_tokens and batch.num_tokens == batch.num_seqs:
            return self.decode_work(batch.num_seqs, int(ends.sum())), 0.0
        first = self._first_tokens
        contexts = np.maximum(ends - first, 0)
        real = contexts - np.maximum(ends - counts - first, 0)  # query tokens outside the adapter
        pairs = int((real * contexts - real * (real - 1) // 2).sum())
        fetched = float((counts - real).sum()) * self._token_bytes
        return StepWork(int(real.sum()), int(ends.sum()), pairs), fetched
