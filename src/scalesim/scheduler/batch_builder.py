"""A step's batch, from the slots that decode and the chunks that are prefilled; and what is kept of
it until its results come.

Used by the scheduler. Decides nothing: who takes part is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalesim.batch import Batch, SamplingBatch, StepOutput
from scalesim.core import Bools, Int32s, Int64s
from scalesim.memory.manager import MemoryManager
from scalesim.sampling.embedding import EmbeddingPlan
from scalesim.sampling.logprobs import LogprobsPlan
from scalesim.scheduler.sequence import Chunk, Sequence
from scalesim.scheduler.slots import Slots


@dataclass(frozen=True, slots=True)
class InFlight:
    """A launched batch: the slots in it, whose they were, and up to which token each was
    computed."""

    slots: Int64s
    epochs: Int64s
    ends: Int64s
    sample: Bools
    prefills: list[Sequence]
    scoring: LogprobsPlan | None = None
    embedding: EmbeddingPlan | None = None

    def deliver(self, slots: Slots, output: StepOutput) -> tuple[Int64s, Int64s]:
        """Note what was computed soundly, for those who are still in their slots. Returns the slots
        whose values are not finite, and the indices of the sequences that have a new token."""
        current = slots.epoch[self.slots] == self.epochs
        if self.scoring is not None and output.scores is not None:
            self.scoring.deliver(output.scores, current)
        if self.embedding is not None and output.hidden_sums is not None:
            self.embedding.deliver(output.hidden_sums, current)
        sound = current & ~output.bad
        slots.done[self.slots[sound]] = self.ends[sound]
        return self.slots[current & output.bad], (self.sample & sound).nonzero()[0]


@dataclass(frozen=True, slots=True)
class _QueryTokens:
    """What a step computes: of each sequence (``slot_ids``: its slot) the tokens from ``starts`` to
    ``ends``; all tokens and positions one behind the other. Those with ``sample`` go on."""

    slot_ids: Int64s
    starts: Int64s
    ends: Int64s
    sample: Bools
    token_ids: Int32s
    positions: Int32s


class BatchBuilder:
    """Makes batches of ``slots`` and of what changed in the block table of ``memory``."""

    def __init__(self, slots: Slots, memory: MemoryManager) -> None:
        self._slots, self._memory = slots, memory

    def launch(self, step: int, decodes: Int64s, chunks: list[Chunk]) -> tuple[Batch, InFlight]:
        """The batch in which each of ``decodes`` computes a token, and each chunk its own, behind
        them. Their slots count it as launched."""
        slots = self._slots
        part = self._decodes(decodes)
        if chunks:
            part = self._with_chunks(part, chunks)
        slot_ids, sample = part.slot_ids, part.sample
        slots.launched[slot_ids] = part.ends
        query_start = np.zeros(len(slot_ids) + 1, np.int32)
        np.cumsum(part.ends - part.starts, out=query_start[1:])
        adjust = None
        if slots.adjusting.num_adjusted:
            adjust = slots.adjusting.batch(
                slot_ids, part.ends, sample, len(decodes), slots.known_tokens
            )
        scoring = self._scoring(part, query_start) if slots.num_scored else None
        embedding = self._embedding(chunks, part.starts, query_start)
        prefills = [sequence for sequence, _ in chunks]
        rows, cols, pages = self._memory.take_table_changes()
        batch = Batch(
            step=step,
            token_ids=part.token_ids,
            positions=part.positions,
            query_start=query_start,
            rows=slots.row[slot_ids].astype(np.int32),
            slots=slot_ids.astype(np.int32),
            sample=sample,
            sampling=SamplingBatch(
                slots.temperature[slot_ids],
                slots.top_k[slot_ids].astype(np.int32),
                slots.top_p[slot_ids],
                slots.key[slot_ids],
            ),
            table_rows=rows,
            table_cols=cols,
            table_pages=pages,
            page_copies=_take_copies(prefills),
            adapters=slots.attached("adapter", slot_ids),
            adjust=adjust,
            scores=None if scoring is None else scoring.batch(),
            embeddings=None if embedding is None else embedding.batch(),
        )
        flight = InFlight(
            slot_ids, slots.epoch[slot_ids], part.ends, sample, prefills, scoring, embedding
        )
        return batch, flight

    def _decodes(self, slot_ids: Int64s) -> _QueryTokens:
        slots = self._slots
        starts = slots.launched[slot_ids]
        token_ids = slots.tokens[slot_ids, starts]
        token_ids[starts >= slots.known[slot_ids]] = -1  # in flight
        ends, sample = starts + 1, np.ones(len(slot_ids), np.bool_)
        return _QueryTokens(slot_ids, starts, ends, sample, token_ids, starts.astype(np.int32))

    def _with_chunks(self, part: _QueryTokens, chunks: list[Chunk]) -> _QueryTokens:
        slots = self._slots
        slot_ids = np.array([sequence.slot for sequence, _ in chunks], np.int64)
        starts = slots.launched[slot_ids]
        ends = starts + np.array([count for _, count in chunks], np.int64)
        known = slots.known[slot_ids]
        sample = (ends >= known) & (slots.limit[slot_ids] > known)
        pieces, places = [part.token_ids], [part.positions]
        for slot, start, end in zip(slot_ids.tolist(), starts.tolist(), ends.tolist(), strict=True):
            pieces.append(slots.tokens[slot, start:end])
            places.append(np.arange(start, end, dtype=np.int32))
        return _QueryTokens(
            np.concatenate([part.slot_ids, slot_ids]),
            np.concatenate([part.starts, starts]),
            np.concatenate([part.ends, ends]),
            np.concatenate([part.sample, sample]),
            np.concatenate(pieces),
            np.concatenate(places),
        )

    def _scoring(self, part: _QueryTokens, query_start: Int32s) -> LogprobsPlan:
        """The query tokens of a step behind which log-probabilities are asked for."""
        plan, slots = LogprobsPlan(), self._slots
        for index in slots.scored[part.slot_ids].nonzero()[0].tolist():
            slot, row = int(part.slot_ids[index]), int(query_start[index])
            positions = range(int(part.starts[index]), int(part.ends[index]))
            known, log = slots.tokens[slot, : slots.known[slot]], slots.at(slot).score_log
            assert log is not None
            plan.add(index, log, positions, row, known, bool(part.sample[index]))
        return plan

    def _embedding(
        self, chunks: list[Chunk], starts: Int64s, query_start: Int32s
    ) -> EmbeddingPlan | None:
        """The hidden states of a step that are asked for: the prefills stand at its end."""
        if all(sequence.embedding_log is None for sequence, _ in chunks):
            return None
        plan, first = EmbeddingPlan(), len(starts) - len(chunks)
        for index, (sequence, count) in enumerate(chunks, start=first):
            if sequence.embedding_log is not None:
                start = int(starts[index])
                positions = range(start, start + count)
                plan.add(index, sequence.embedding_log, positions, int(query_start[index]))
        return plan if plan.owners else None


def _take_copies(sequences: list[Sequence]) -> Int32s:
    """``[n, 2]``: pages to be copied before the step, from and to; they are launched with it."""
    copies: list[tuple[int, int]] = []
    for sequence in sequences:
        assert sequence.lease is not None
        copies += sequence.lease.take_copies()
    return np.array(copies, np.int32).reshape(-1, 2)
