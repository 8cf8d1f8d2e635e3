"""A batch: what crosses from the scheduler to the runner for one step, and what comes back.

Arrays are one-dimensional and C-contiguous unless a shape says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from scalesim.batch_options import (
    AttachmentBatch,
    EmbeddingBatch,
    LogitsBatch,
    LogprobsBatch,
    Scores,
)
from scalesim.core import Bools, Fence, Floats, Int32s, UInt64s

NO_TOKEN = -1
"""In ``Batch.token_ids``: the token that this slot samples in the step still in flight.
In ``StepOutput.token_ids``: the sequence sampled nothing in this step."""


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """Per-sequence sampling parameters of one step, each ``[num_seqs]``.

    ``keys`` are 64-bit Philox keys; the counter is the absolute position of the token to be drawn,
    so a draw does not depend on the batch it is in.
    """

    temperatures: Floats
    top_ks: Int32s
    top_ps: Floats
    keys: UInt64s


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work: the flat query tokens of ``num_seqs`` sequences, prefill chunks and decodes
    mixed.

    Applied in this order: ``table_*`` (entries of the runner's block table that changed since the
    last launch), ``page_copies`` (whole pages, source to destination, for copy-on-write), then the
    forward pass, which writes the KV of every query token into its page before attention reads it.

    Sequence ``i`` owns query tokens ``query_start[i]:query_start[i+1]``, at consecutive
    ``positions``; its context is everything up to and including its last query position.
    """

    step: int
    token_ids: Int32s  # [num_tokens]; NO_TOKEN = what the slot sampled in the previous step
    positions: Int32s  # [num_tokens], absolute
    query_start: Int32s  # [num_seqs + 1]
    rows: Int32s  # [num_seqs], rows of the block table; row 0 is the dummy
    slots: Int32s  # [num_seqs], each running sequence's own, in [0, max_num_seqs)
    sample: Bools  # [num_seqs], whether the last query token's logits are sampled
    sampling: SamplingBatch
    table_rows: Int32s  # [num_changes]
    table_cols: Int32s  # [num_changes], logical block
    table_pages: Int32s  # [num_changes], page id
    page_copies: Int32s  # [num_copies, 2], (source page, destination page)
    adapters: AttachmentBatch | None = None  # None: every sequence runs without one
    weights: AttachmentBatch | None = None  # None: every sequence runs on the engine's own model
    logprobs: LogprobsBatch | None = None
    logits: LogitsBatch | None = None
    embeddings: EmbeddingBatch | None = None

    @property
    def num_seqs(self) -> int:
        return len(self.rows)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a launched batch gave, by sequence of the batch."""

    step: int
    token_ids: Int32s  # [num_seqs]; NO_TOKEN where nothing was sampled
    bad: Bools  # [num_seqs]; the last query token's logits (or hidden state) are not finite
    digests: UInt64s | None  # [num_seqs]; xxh3-64 of the sampled logits' bytes, when asked for
    compute_s: float
    logprobs: Scores | None = None  # in the order of the batch's
    hidden_sums: list[Floats] | Floats | None = None  # a sum ``[hidden]`` a span of the batch's


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A launched batch. ``fence`` is reached when the device has finished it; ``handle`` is the
    runner's."""

    step: int
    fence: Fence
    handle: Any = field(repr=False)


class Runner(Protocol):
    """Runs batches, in launch order. ``collect`` is called once per step, in the same order.

    ``steps_in_flight`` is how many steps may be launched and not collected (1 or 2). What raises
    leaves nothing of its step running.
    """

    steps_in_flight: int

    def launch(self, batch: Batch) -> LaunchedStep: ...

    def collect(self, step: LaunchedStep) -> StepOutput: ...
