"""Runners without a model: the tag runner, which detects every wrong page, and the stub, which
costs almost nothing.

``TagRunner`` implements ``batch.Runner`` on the numpy device pool that a link really copies. Its
"attention" reads every slot of each sequence's context through the block table. The texts are those
of ``expected_text``. Torch-free.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from scalesim.batch import NO_TOKEN, Batch, LaunchedStep, StepOutput
from scalesim.batch_options import AttachmentBatch
from scalesim.core import Bools, Bytes2D, Fence, Int32s, Int64s, UInt64s
from scalesim.memory.links.link import Timeline
from scalesim.testing.tags import (
    CHECK,
    LINEAGE,
    NUM_FIELDS,
    POISON,
    POSITION,
    STEP,
    TAG_BYTES,
    TOKEN,
    TagError,
    Tags,
    adapter_pages,
    block_sizes,
    expected_text,
    mix,
    page_bytes_for,
    seals,
    view_tags,
    weight_pages,
    words,
)

__all__ = ["TAG_BYTES", "StubRunner", "TagError", "TagRunner", "expected_text", "page_bytes_for"]

Verify = Literal["all", "new", "off"]
BadHook = Callable[[int, int], bool]


@dataclass(frozen=True, slots=True)
class _Launched:
    batch: Batch
    readers: list[Int64s]  # tokens by slot, of the launch: a slot may have another sequence later


class TagRunner:
    """A runner whose KV slots hold tags.

    ``verify``: ``"all"`` reads the whole context and raises ``TagError`` at the first wrong slot;
    ``"new"`` reads only the block before the new tokens (for benchmarks); ``"off"`` reads all, and
    a wrong byte changes the text. ``bad(slot, token)`` tells whether the step that would sample
    ``token`` in ``slot`` is a bad one, whose tags are poisoned. ``reader(slot)`` is the tokens
    whose context a slot must read, as far as they are known; without it, a context that belongs to
    another sequence from its first token on only changes the text. With two steps in flight, a
    launched batch waits until ``run_next`` or its ``collect``; ``timeline`` is told when it ran.
    """

    def __init__(
        self,
        pages: Bytes2D,
        block_size: int,
        *,
        max_num_seqs: int,
        max_num_rows: int,
        max_blocks_per_row: int,
        steps_in_flight: int = 1,
        timeline: Timeline | None = None,
        vocab_size: int = 512,
        verify: Verify = "all",
        bad: BadHook | None = None,
        reader: Callable[[int], Int64s] | None = None,
    ) -> None:
        self.steps_in_flight = steps_in_flight
        self.bad = bad
        self.reader = reader
        self.table = np.zeros((max_num_rows, max_blocks_per_row), np.int64)
        self.pages, self._tags = pages, view_tags(pages, block_size)
        self._block_size, self._vocab_size = block_size, vocab_size
        self._timeline, self.verify = timeline, verify
        self._sampled = np.full(max_num_seqs, NO_TOKEN, np.int64)  # by slot: the newest token
        self._sampled_at = np.full(max_num_seqs, -1, np.int64)  # and its position
        self._queue: deque[_Launched] = deque()
        self._ran: deque[StepOutput] = deque()

    def launch(self, batch: Batch) -> LaunchedStep:
        in_flight = len(self._queue) + len(self._ran)
        assert in_flight < self.steps_in_flight, f"{in_flight} of {self.steps_in_flight} in flight"
        slots = batch.slots.tolist() if self.reader is not None else []
        self._queue.append(_Launched(batch, [self.reader(slot) for slot in slots if self.reader]))
        if self.steps_in_flight == 1:
            self.run_next()
        return LaunchedStep(batch.step, Fence("compute", batch.step), batch)

    def collect(self, step: LaunchedStep) -> StepOutput:
        if not self._ran:
            self.run_next()
        output = self._ran.popleft()
        assert output.step == step.step, f"step {step.step} collected, {output.step} is the oldest"
        return output

    def run_next(self) -> bool:
        """Run the oldest launched batch that has not run yet; False if there is none."""
        if not self._queue:
            return False
        start = time.perf_counter()
        launched = self._queue.popleft()
        self._ran.append(self._run(launched, start))
        if self._timeline is not None:
            self._timeline.reach(launched.batch.step)
        return True

    @property
    def waiting(self) -> tuple[int, ...]:
        """The launched steps that have not run, oldest first."""
        return tuple(launched.batch.step for launched in self._queue)

    def _run(self, launched: _Launched, start: float) -> StepOutput:
        batch, readers = launched.batch, launched.readers
        self.table[batch.table_rows, batch.table_cols] = batch.table_pages
        for source, destination in batch.page_copies:
            self.pages[destination] = self.pages[source]
        counts = np.diff(batch.query_start)
        rows = np.repeat(batch.rows.astype(np.int64), counts)
        positions = batch.positions.astype(np.int64)
        sizes = block_sizes(batch, self._block_size)
        written = self._places(rows, positions, np.repeat(sizes, counts))
        if self.verify != "off":
            self._check_writes(rows, positions, written)
            for attached in (batch.adapters, batch.weights):
                if attached is not None:
                    self._check_attached(batch, attached)
        self._tags[written] = self._new_tags(batch, counts, positions, sizes)
        contexts = positions[batch.query_start[1:] - 1] + 1
        lineages, bad = self._attend(batch, readers, contexts, sizes)
        digests = self._draw(batch, lineages, contexts)
        tokens = (digests % np.uint64(self._vocab_size)).astype(np.int64)
        if self.bad is not None:
            for index in batch.sample.nonzero()[0]:
                bad[index] |= self.bad(int(batch.slots[index]), int(tokens[index]))
        self._tags[written[np.repeat(bad, counts)], CHECK] = POISON
        slots = batch.slots[batch.sample]
        self._sampled[slots] = tokens[batch.sample]
        self._sampled_at[slots] = contexts[batch.sample]
        tokens[~batch.sample] = NO_TOKEN
        seconds = time.perf_counter() - start
        return StepOutput(batch.step, tokens.astype(np.int32), bad, digests, seconds)

    def _places(self, rows: Int64s, positions: Int64s, sizes: Int64s) -> Int64s:
        """Indices into the tags of the slots at ``positions`` of ``rows``, in blocks of ``sizes``
        tokens."""
        pages = self.table[rows, positions // sizes]
        places: Int64s = pages * self._block_size + positions % sizes
        return places

    def _check_writes(self, rows: Int64s, positions: Int64s, written: Int64s) -> None:
        unset = (rows != 0) & (written < self._block_size)
        if unset.any():
            index = int(unset.nonzero()[0][0])
            raise TagError(
                f"row {rows[index]} has no page at position {positions[index]}: it points to 0"
            )
        places, counts = np.unique(written[rows != 0], return_counts=True)
        if (counts > 1).any():
            index = int(places[counts > 1][0])
            raise TagError(
                f"slot {index % self._block_size} of page {index // self._block_size}: 2 writers"
            )

    def _new_tags(self, batch: Batch, counts: Int64s, positions: Int64s, sizes: Int64s) -> Tags:
        """The new tags, ``[num_tokens, NUM_FIELDS]``, each chained to the tag before; the first to
        one that is read from its page."""
        first = batch.query_start[:-1]
        before = positions[first] - 1
        rows = batch.rows.astype(np.int64)
        lineage = self._tags[self._places(rows, np.maximum(before, 0), sizes), LINEAGE]
        lineage = np.where(before < 0, np.uint64(0), lineage)
        tokens = self._tokens(batch, counts).astype(np.uint64)
        word = words(tokens, positions.astype(np.uint64))
        total = np.cumsum(word)
        new = np.empty((len(tokens), NUM_FIELDS), np.uint64)
        new[:, LINEAGE] = total + np.repeat(lineage - (total[first] - word[first]), counts)
        new[:, POSITION] = positions
        new[:, TOKEN] = tokens
        new[:, STEP] = batch.step
        new[:, CHECK] = seals(new[:, LINEAGE], word, new[:, STEP])
        return new

    def _tokens(self, batch: Batch, counts: Int64s) -> Int64s:
        tokens = batch.token_ids.astype(np.int64)
        pending = tokens == NO_TOKEN
        if pending.any():
            slots = np.repeat(batch.slots, counts)[pending]
            tokens[pending] = self._sampled[slots]
            if (self._sampled_at[slots] != batch.positions[pending]).any():
                positions = self._sampled_at[slots].tolist()
                raise TagError(
                    f"step {batch.step}: slots {slots.tolist()} sampled tokens of positions "
                    f"{positions}; placeholders stand at {batch.positions[pending].tolist()}"
                )
        owner = np.repeat(np.arange(len(counts)), counts)
        return self._under_adapters(batch, tokens, owner, batch.positions)

    def _under_adapters(
        self, batch: Batch, tokens: Int64s, owner: Int64s, positions: Int64s | Int32s
    ) -> Int64s:
        """``tokens`` as tags store them under the adapter or model of each ``owner``; all are
        ``[n]``."""
        for attached in (batch.adapters, batch.weights):
            if attached is not None:
                tags = np.where(attached.rows > 0, attached.layouts.astype(np.int64) >> 8, 0)
                in_force = positions >= attached.starts[owner]
                tokens = tokens + np.where(in_force, tags[owner] << 32, 0)
        return tokens

    def _check_attached(self, batch: Batch, attached: AttachmentBatch) -> None:
        """Check that the pages in each row hold that adapter, or those weights."""
        for row, layout in {*zip(attached.rows.tolist(), attached.layouts.tolist(), strict=True)}:
            if row:
                tag, count = layout >> 8, layout & 255
                pages = self.table[row, :count].tolist()
                if attached is batch.weights:
                    pages = weight_pages(tag, count, pages)
                found = self.pages[pages] == adapter_pages(tag, count, self.pages.shape[1])
                if not found.all():
                    block = int((~found.all(axis=1)).nonzero()[0][0])
                    raise TagError(
                        f"step {batch.step}: content {tag}, row {row}: page {pages[block]} does "
                        f"not hold its block {block} of {count}"
                    )

    def _attend(
        self, batch: Batch, readers: list[Int64s], contexts: Int64s, sizes: Int64s
    ) -> tuple[UInt64s, Bools]:
        """Read each sequence's context. Returns the lineages, changed by any wrong slot, and
        whether each sequence read a poisoned slot; both ``[num_seqs]``."""
        first = np.zeros(len(contexts), np.int64)
        if self.verify == "new":
            started = batch.positions[batch.query_start[:-1]].astype(np.int64)
            first = np.maximum(started - self._block_size, 0)
        counts = contexts - first
        ends = np.cumsum(counts)
        starts = ends - counts
        owner = np.repeat(np.arange(len(counts)), counts)
        positions = np.arange(ends[-1]) - np.repeat(starts - first, counts)
        places = self._places(batch.rows.astype(np.int64)[owner], positions, sizes[owner])
        tags = np.ascontiguousarray(self._tags[places].T)
        lineage = tags[LINEAGE]
        tokens = tags[TOKEN]
        if readers:
            tokens = self._own_tokens(batch, readers, first, starts, tokens)
        word = words(tokens, tags[POSITION])
        before = np.empty_like(lineage)
        before[1:] = lineage[:-1]
        before[starts] = np.where(first == 0, np.uint64(0), lineage[starts] - word[starts])
        broken = seals(lineage, word, tags[STEP]) ^ tags[CHECK]
        broken |= (lineage - before) ^ word
        broken |= (tags[POSITION] ^ positions.astype(np.uint64)) | (tags[TOKEN] ^ tokens)
        result = lineage[ends - 1]
        bad = np.zeros(len(counts), np.bool_)
        if broken.any():
            bad[owner[tags[CHECK] == POISON]] = True
            wrong = (broken != 0) & ~bad[owner] & (batch.rows[owner] != 0)
            if wrong.any() and self.verify != "off":
                index = int(wrong.nonzero()[0][0])
                place = int(owner[index]), int(positions[index]), int(places[index])
                self._report(batch, *place, tags[:, index], int(before[index]), int(tokens[index]))
            result = result + mix(np.add.reduceat(mix(broken) * (broken != 0), starts))
        return result, bad

    def _own_tokens(
        self, batch: Batch, readers: list[Int64s], first: Int64s, starts: Int64s, found: UInt64s
    ) -> UInt64s:
        """The tokens that the readers must find, ``[n]``; ``found`` where these are not known. Each
        context begins at position ``first``, and at index ``starts`` of ``found``."""
        own = np.full(len(found), NO_TOKEN, np.int64)
        ends = np.append(starts[1:], len(found))
        for reader, position, start, end in zip(readers, first, starts, ends, strict=True):
            tokens = reader[position : position + end - start]
            own[start : start + len(tokens)] = tokens
        known = own != NO_TOKEN
        owner = np.repeat(np.arange(len(starts)), ends - starts)
        positions = np.arange(len(found)) - (starts - first)[owner]
        own = self._under_adapters(batch, own, owner, positions)
        return np.where(known, own.astype(np.uint64), found)

    def _report(
        self,
        batch: Batch,
        index: int,
        position: int,
        place: int,
        found: UInt64s,
        before: int,
        token: int,
    ) -> None:
        names = ("lineage", "position", "token", "step", "check")
        slot = ", ".join(
            f"{name} {int(value):#x}" for name, value in zip(names, found, strict=True)
        )
        word = words(np.array([token], np.uint64), np.array([position], np.uint64))
        lineage = np.array([before], np.uint64) + word
        raise TagError(
            f"step {batch.step}: row {batch.rows[index]}, position {position}, page "
            f"{place // self._block_size} holds ({slot}); expected position {position:#x}, token "
            f"{token:#x} and, after lineage {before:#x}, lineage {int(lineage[0]):#x} and "
            f"check {int(seals(lineage, word, found[STEP : STEP + 1])[0]):#x}"
        )

    def _draw(self, batch: Batch, lineages: UInt64s, contexts: Int64s) -> UInt64s:
        """The sampling digests, ``[num_seqs]``: of the lineage alone if greedy, else also of key,
        position and temperature."""
        sampling = batch.sampling
        greedy = mix(lineages)
        warmth = sampling.temperatures.view(np.uint32).astype(np.uint64)
        noise = mix(sampling.keys + mix(contexts.astype(np.uint64)))
        return np.where(sampling.temperatures > 0, mix(greedy + noise + warmth), greedy)


class StubRunner:
    """A runner that gives pseudorandom tokens at almost no cost and uses no pages: for measuring
    everything else."""

    def __init__(
        self, vocab_size: int = 512, steps_in_flight: int = 1, timeline: Timeline | None = None
    ) -> None:
        self.steps_in_flight = steps_in_flight
        self._vocab_size, self._timeline = np.uint64(vocab_size), timeline

    def launch(self, batch: Batch) -> LaunchedStep:
        if self._timeline is not None:
            self._timeline.reach(batch.step)
        return LaunchedStep(batch.step, Fence("compute", batch.step), batch)

    def collect(self, step: LaunchedStep) -> StepOutput:
        batch: Batch = step.handle
        last = batch.positions[batch.query_start[1:] - 1].astype(np.uint64)
        tokens = (mix(batch.sampling.keys + last) % self._vocab_size).astype(np.int32)
        tokens[~batch.sample] = NO_TOKEN
        return StepOutput(batch.step, tokens, np.zeros(len(last), np.bool_), None, 0.0)
