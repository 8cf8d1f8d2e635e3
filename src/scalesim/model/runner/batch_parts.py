"""Parts of a batch: the sequences of one model as a batch of their own, and one output of several.

A part has its sequences in the order of the batch. It has no changes of the block table and no page
copies: these are applied once, for the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from scalesim.batch import NO_TOKEN, Batch, SamplingBatch, StepOutput
from scalesim.batch_options import (
    AttachmentBatch,
    EmbeddingBatch,
    LogitsBatch,
    LogprobsBatch,
    Scores,
)
from scalesim.core import Floats, Int64s

Finish: TypeAlias = Callable[[], StepOutput]
"""Gives the output of a part of a step that was computed or submitted, once the step is over."""
_NONE = np.zeros(0, np.int32)


def num_words(vocab_size: int) -> int:
    """The int32 words of a mask over a vocabulary."""
    return -(-vocab_size // 32)


class BatchPart:
    """The sequences ``seqs`` (ascending) of ``batch``."""

    def __init__(self, batch: Batch, seqs: Int64s) -> None:
        self.seqs, self._batch = seqs, batch
        self._index = np.full(batch.num_seqs, -1, np.int64)  # of a sequence, in the part
        self._index[seqs] = np.arange(len(seqs))
        seq_of = np.repeat(np.arange(batch.num_seqs), np.diff(batch.query_start))
        self._tokens = np.flatnonzero(self._index[seq_of] >= 0)
        self._row = np.full(batch.num_tokens + 1, -1, np.int64)  # of a query token, in the part
        self._row[self._tokens] = np.arange(len(self._tokens))
        self._seq_of = seq_of

    def batch(self, vocab_size: int) -> Batch:
        """The part as a batch, for a model of ``vocab_size``."""
        whole, seqs = self._batch, self.seqs
        query_start = np.zeros(len(seqs) + 1, np.int32)
        np.cumsum(np.diff(whole.query_start)[seqs], out=query_start[1:])
        sampling, adapters = whole.sampling, whole.adapters
        return replace(
            whole,
            token_ids=whole.token_ids[self._tokens],
            positions=whole.positions[self._tokens],
            query_start=query_start,
            rows=whole.rows[seqs],
            slots=whole.slots[seqs],
            sample=whole.sample[seqs],
            sampling=SamplingBatch(
                sampling.temperatures[seqs], sampling.top_ks[seqs], sampling.top_ps[seqs],
                sampling.keys[seqs],
            ),
            table_rows=_NONE, table_cols=_NONE, table_pages=_NONE,
            page_copies=np.zeros((0, 2), np.int32),
            adapters=None if adapters is None else self._adapters(adapters),
            weights=None,
            logprobs=None if whole.logprobs is None else self._logprobs(whole.logprobs),
            logits=None if whole.logits is None else self._logits(whole.logits, vocab_size),
            embeddings=None if whole.embeddings is None else self._embeddings(whole.embeddings),
        )  # fmt: skip

    def _adapters(self, whole: AttachmentBatch) -> AttachmentBatch | None:
        rows, seqs = whole.rows[self.seqs], self.seqs
        if not rows.any():
            return None
        return AttachmentBatch(rows, whole.layouts[seqs], whole.starts[seqs])

    @property
    def scores(self) -> Int64s:
        """The indices of the batch's log-probabilities that are the part's."""
        assert self._batch.logprobs is not None
        return np.flatnonzero(self._row[self._batch.logprobs.tokens] >= 0)

    def _logprobs(self, whole: LogprobsBatch) -> LogprobsBatch | None:
        mine = self.scores
        if not len(mine):
            return None
        rows = self._row[whole.tokens[mine]].astype(np.int32)
        return LogprobsBatch(rows, whole.targets[mine], whole.top_k)

    @property
    def spans(self) -> Int64s:
        """The indices of the batch's embedding spans that are the part's."""
        assert self._batch.embeddings is not None
        return np.flatnonzero(self._row[self._batch.embeddings.spans[:, 0]] >= 0)

    def _embeddings(self, whole: EmbeddingBatch) -> EmbeddingBatch | None:
        spans = whole.spans[self.spans]
        if not len(spans):
            return None
        firsts = self._row[spans[:, 0]]
        return EmbeddingBatch(
            np.stack([firsts, firsts + spans[:, 1] - spans[:, 0]], axis=1).astype(np.int32)
        )

    def _logits(self, whole: LogitsBatch, vocab_size: int) -> LogitsBatch | None:
        mine = np.flatnonzero(self._index[whole.seqs] >= 0)
        slots = set(self._batch.slots[self.seqs].tolist())
        begins = tuple(begin for begin in whole.begins if begin[0] in slots)
        if not len(mine):
            return None
        biases = [slice(*whole.bias_start[i : i + 2].tolist()) for i in mine.tolist()]
        ids = [_NONE, *(whole.bias_ids[part] for part in biases)]
        values = [np.zeros(0, np.float32), *(whole.biases[part] for part in biases)]
        bias_start = np.zeros(len(mine) + 1, np.int32)
        np.cumsum([part.stop - part.start for part in biases], out=bias_start[1:])
        return replace(
            whole,
            seqs=self._index[whole.seqs[mine]].astype(np.int32),
            min_ps=whole.min_ps[mine],
            repetitions=whole.repetitions[mine],
            presences=whole.presences[mine],
            frequencies=whole.frequencies[mine],
            bias_start=bias_start,
            bias_ids=np.concatenate(ids),
            biases=np.concatenate(values),
            mask_rows=whole.mask_rows[mine],
            masks=whole.masks[:, : num_words(vocab_size)],
            begins=begins,
        )


def joined(batch: Batch, parts: Sequence[tuple[BatchPart, StepOutput]]) -> StepOutput:
    """What ``batch`` gave, of what its ``parts`` gave; together they have all its sequences. The
    parts take their time one after the other."""
    tokens = np.full(batch.num_seqs, NO_TOKEN, np.int32)
    bad = np.zeros(batch.num_seqs, np.bool_)
    digests = None
    sums: list[Floats | None] = [None] * (
        0 if batch.embeddings is None else len(batch.embeddings.spans)
    )
    for part, output in parts:
        tokens[part.seqs], bad[part.seqs] = output.token_ids, output.bad
        if output.digests is not None:
            digests = np.zeros(batch.num_seqs, np.uint64) if digests is None else digests
            digests[part.seqs] = output.digests
        if output.hidden_sums is not None:
            for at, total in zip(part.spans.tolist(), output.hidden_sums, strict=True):
                sums[at] = total
    scores = None if batch.logprobs is None else _joined_scores(batch.logprobs, parts)
    found = [total for total in sums if total is not None]
    assert len(found) == len(sums), "a span belongs to no part"
    return StepOutput(
        batch.step, tokens, bad, digests, sum(output.compute_s for _, output in parts), scores,
        None if batch.embeddings is None else found,
    )  # fmt: skip


def _joined_scores(asked: LogprobsBatch, parts: Sequence[tuple[BatchPart, StepOutput]]) -> Scores:
    count, width = len(asked.tokens), asked.top_k
    whole = Scores(
        np.full(count, np.nan, np.float32),
        np.zeros((count, width), np.int32),
        np.full((count, width), np.nan, np.float32),
    )
    for part, output in parts:
        if output.logprobs is not None:
            at, found = part.scores, output.logprobs
            whole.logprobs[at] = found.logprobs
            whole.top_ids[at], whole.top_logprobs[at] = found.top_ids, found.top_logprobs
    return whole
