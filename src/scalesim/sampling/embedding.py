"""Embeddings: which final hidden states of a step are summed, and for whom.

Used by the scheduler, for sequences that generate nothing. A mean takes the states of all tokens,
so none of them may be looked up; the last token is computed in any case.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from scalesim.batch_options import EmbeddingBatch
from scalesim.core import Bools, Floats, Pooling


class EmbeddingLog:
    """One sequence's sum of hidden states so far; ``next`` is the position that is due."""

    def __init__(self, prompt_len: int, pooling: Pooling) -> None:
        self._prompt_len = prompt_len
        self._first = self.next = 0 if pooling == "mean" else prompt_len - 1
        self._sum: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None = None

    def usable(self) -> int:
        """How many of its first tokens a lease may look up, the last of which it does not use."""
        return self.next + 1

    def wanted(self, positions: range) -> range:
        return range(max(positions.start, self.next), max(positions.stop, self.next))

    def take(self, positions: range, total: Floats) -> None:
        """The sum over the query tokens at ``positions``; what came twice is taken once."""
        if positions.start != self.next:
            return
        so_far = 0.0 if self._sum is None else self._sum
        self._sum = so_far + total.astype(np.float64)
        self.next = positions.stop

    def result(self) -> Floats:
        """``[hidden]`` fp32: the mean over what was asked for."""
        assert self._sum is not None and self.next == self._prompt_len
        mean: Floats = (self._sum / (self._prompt_len - self._first)).astype(np.float32)
        return mean


@dataclass(slots=True)
class EmbeddingPlan:
    """A step's sums, by sequence, in the order in which they come back."""

    owners: list[tuple[int, EmbeddingLog, range]] = field(
        default_factory=list
    )  # index in the batch
    spans: list[tuple[int, int]] = field(default_factory=list)

    def add(self, index: int, log: EmbeddingLog, positions: range, first_token: int) -> None:
        """The sequence at ``index`` of the batch computes ``positions``, as its query tokens from
        ``first_token`` on; ``log`` is the sequence's."""
        wanted = log.wanted(positions)
        if len(wanted):
            shift = first_token - positions.start
            self.owners.append((index, log, wanted))
            self.spans.append((wanted.start + shift, wanted.stop + shift))

    def batch(self) -> EmbeddingBatch:
        return EmbeddingBatch(np.array(self.spans, np.int32))

    def deliver(self, sums: Floats, is_current: Bools) -> None:
        """To each owner its own, but for those who are not in their slot any more."""
        for (index, log, positions), total in zip(self.owners, sums, strict=True):
            if is_current[index]:
                log.take(positions, total)
