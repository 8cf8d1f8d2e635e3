"""Embeddings: the sums of final hidden states that a step returns, and the sequences they belong
to.

Used by the scheduler, for sequences that generate nothing. A mean needs the states of all tokens,
so no prefix may be taken from the cache. The last token of a prompt is always computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from scalesim.batch_options import EmbeddingBatch
from scalesim.core import Bools, Floats, Pooling


class EmbeddingLog:
    """The sum of a sequence's hidden states so far. ``next`` is the first position that is not in
    the sum."""

    def __init__(self, prompt_len: int, pooling: Pooling) -> None:
        self._prompt_len = prompt_len
        self._first = self.next = 0 if pooling == "mean" else prompt_len - 1
        self._sum: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None = None

    def usable(self) -> int:
        """How many of the first tokens a lease may look up. A lease never uses the last of
        these."""
        return self.next + 1

    def wanted(self, positions: range) -> range:
        return range(max(positions.start, self.next), max(positions.stop, self.next))

    def take(self, positions: range, total: Floats) -> None:
        """Add ``total``, the sum over the query tokens at ``positions``. A sum that was added
        before is ignored."""
        if positions.start != self.next:
            return
        so_far = 0.0 if self._sum is None else self._sum
        self._sum = so_far + total.astype(np.float64)
        self.next = positions.stop

    def result(self) -> Floats:
        """The mean of the states that were asked for, ``[hidden]`` fp32."""
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
        """Plan the sums of the sequence at ``index`` of the batch. Its query tokens, from
        ``first_token`` on, are at ``positions``; ``log`` is the sequence's log."""
        wanted = log.wanted(positions)
        if len(wanted):
            shift = first_token - positions.start
            self.owners.append((index, log, wanted))
            self.spans.append((wanted.start + shift, wanted.stop + shift))

    def batch(self) -> EmbeddingBatch:
        return EmbeddingBatch(np.array(self.spans, np.int32))

    def deliver(self, sums: Sequence[Floats] | Floats, is_current: Bools) -> None:
        """Give each log its sum, except logs of sequences that have left their slot."""
        for (index, log, positions), total in zip(self.owners, sums, strict=True):
            if is_current[index]:
                log.take(positions, total)
