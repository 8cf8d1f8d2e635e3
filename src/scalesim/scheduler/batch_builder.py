"""The batch builder: a step's batch of decoding slots and prefill chunks, and what is kept of the
batch until its results come.

Used by the scheduler, which decides what takes query.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalesim.batch import NO_TOKEN, Batch, SamplingBatch, StepOutput
from scalesim.core import Bools, Int32s, Int64s
from scalesim.memory.manager import MemoryManager
from scalesim.sampling.embedding import EmbeddingPlan
from scalesim.sampling.logprobs import LogprobsPlan
from scalesim.scheduler.sequence import Chunk, Sequence
from scalesim.scheduler.slots import Slots


@dataclass(frozen=True, slots=True)
class InFlight:
    """A launched batch: its slots, the epoch of each (which tells the slot's sequences apart), and
    the token up to which each is computed."""

    slots: Int64s
    epochs: Int64s
    ends: Int64s
    sample: Bools
    prefills: list[Sequence]
    prefill_tokens: int
    logprobs: LogprobsPlan | None = None
    embeddings: EmbeddingPlan | None = None

    def deliver(self, slots: Slots, output: StepOutput) -> tuple[Int64s, Int64s]:
        """Note what was computed soundly, for sequences that are still in their slots. Returns the
        slots whose values are not finite, and the indices of the sequences with a new token."""
        current = slots.epoch[self.slots] == self.epochs
        if self.logprobs is not None and output.logprobs is not None:
            self.logprobs.deliver(output.logprobs, current)
        if self.embeddings is not None and output.hidden_sums is not None:
            self.embeddings.deliver(output.hidden_sums, current)
        sound = current & ~output.bad
        slots.done[self.slots[sound]] = self.ends[sound]
        return self.slots[current & output.bad], (self.sample & sound).nonzero()[0]


@dataclass(frozen=True, slots=True)
class _QueryTokens:
    """The tokens that a step computes: of each of ``slot_ids``, those from ``starts`` to ``ends``.
    With ``sample``, the token behind them is sampled. ``token_ids`` and ``positions`` are flat."""

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

    def build(self, step: int, decodes: Int64s, chunks: list[Chunk]) -> tuple[Batch, InFlight]:
        """A batch in which each slot of ``decodes`` computes one token, and behind them each chunk
        its own. The slots count these tokens as launched."""
        slots = self._slots
        query = self._decodes(decodes)
        if chunks:
            query = self._with_chunks(query, chunks)
        slot_ids, sample = query.slot_ids, query.sample
        slots.launched[slot_ids] = query.ends
        query_start = np.zeros(len(slot_ids) + 1, np.int32)
        np.cumsum(query.ends - query.starts, out=query_start[1:])
        logits = None
        if slots.logits.num_processed:
            logits = slots.logits.batch(
                slot_ids, query.ends, sample, len(decodes), slots.known_tokens
            )
        logprobs = self._logprobs(query, query_start) if slots.num_scored else None
        embeddings = self._embeddings(chunks, query.starts, query_start)
        prefills = [sequence for sequence, _ in chunks]
        rows, cols, pages = self._memory.take_table_changes()
        batch = Batch(
            step=step,
            token_ids=query.token_ids,
            positions=query.positions,
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
            adapters=slots.attachments.batch("adapter", slot_ids),
            weights=slots.attachments.batch("weights", slot_ids),
            logits=logits,
            logprobs=None if logprobs is None else logprobs.batch(),
            embeddings=None if embeddings is None else embeddings.batch(),
        )
        epochs = slots.epoch[slot_ids]
        in_flight = InFlight(
            slot_ids, epochs, query.ends, sample, prefills, batch.num_tokens - len(decodes),
            logprobs, embeddings,
        )  # fmt: skip
        return batch, in_flight

    def _decodes(self, slot_ids: Int64s) -> _QueryTokens:
        slots = self._slots
        starts = slots.launched[slot_ids]
        token_ids = slots.tokens[slot_ids, starts]
        token_ids[starts >= slots.known[slot_ids]] = NO_TOKEN  # the step in flight samples it
        ends, sample = starts + 1, np.ones(len(slot_ids), np.bool_)
        return _QueryTokens(slot_ids, starts, ends, sample, token_ids, starts.astype(np.int32))

    def _with_chunks(self, query: _QueryTokens, chunks: list[Chunk]) -> _QueryTokens:
        slots = self._slots
        slot_ids = np.array([sequence.slot for sequence, _ in chunks], np.int64)
        starts = slots.launched[slot_ids]
        ends = starts + np.array([count for _, count in chunks], np.int64)
        known = slots.known[slot_ids]
        sample = (ends >= known) & (slots.limit[slot_ids] > known)
        token_ids, positions = [query.token_ids], [query.positions]
        for slot, start, end in zip(slot_ids.tolist(), starts.tolist(), ends.tolist(), strict=True):
            token_ids.append(slots.tokens[slot, start:end])
            positions.append(np.arange(start, end, dtype=np.int32))
        return _QueryTokens(
            np.concatenate([query.slot_ids, slot_ids]),
            np.concatenate([query.starts, starts]),
            np.concatenate([query.ends, ends]),
            np.concatenate([query.sample, sample]),
            np.concatenate(token_ids),
            np.concatenate(positions),
        )

    def _logprobs(self, query: _QueryTokens, query_start: Int32s) -> LogprobsPlan:
        """The query tokens of a step behind which log-probabilities are asked for."""
        plan, slots = LogprobsPlan(), self._slots
        for index in slots.scored[query.slot_ids].nonzero()[0].tolist():
            slot, row = int(query.slot_ids[index]), int(query_start[index])
            positions = range(int(query.starts[index]), int(query.ends[index]))
            known, log = (
                slots.tokens[slot, : slots.known[slot]],
                slots.sequences[slot].logprobs_log,
            )
            assert log is not None
            plan.add(index, log, positions, row, known, bool(query.sample[index]))
        return plan

    def _embeddings(
        self, chunks: list[Chunk], starts: Int64s, query_start: Int32s
    ) -> EmbeddingPlan | None:
        """The hidden states of a step that are asked for: only prefills do, which stand last."""
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
    """``[n, 2]``: the pages that are copied (from, to) before the step computes."""
    copies: list[tuple[int, int]] = []
    for sequence in sequences:
        assert sequence.lease is not None
        copies += sequence.lease.take_copies()
    return np.array(copies, np.int32).reshape(-1, 2)
