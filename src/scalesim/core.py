"""Plain values that travel between the parts: what a request asks, what a step computes, what comes
back.

Imports nothing but numpy; every other module may import this one.
Arrays are one-dimensional and C-contiguous unless a shape says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

AgentId: TypeAlias = "str | int"
Int32s: TypeAlias = npt.NDArray[np.int32]
Int64s: TypeAlias = npt.NDArray[np.int64]
UInt64s: TypeAlias = npt.NDArray[np.uint64]
Floats: TypeAlias = npt.NDArray[np.float32]
Bools: TypeAlias = npt.NDArray[np.bool_]
Bytes2D: TypeAlias = npt.NDArray[np.uint8]

NO_TOKEN = -1
"""In ``Batch.token_ids``: the token that this slot samples in the step still in flight.
In ``StepOutput.token_ids``: the sequence sampled nothing in this step."""

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request's tokens are drawn.

    ``temperature`` 0 is greedy (ties go to the lowest id). ``top_k`` 0 and ``top_p`` 1 keep every
    token. ``seed`` replaces the engine's seed for this request: equal prompt, parameters and seed
    give equal text. ``stop`` strings end the text before their first occurrence; ``stop_token_ids``
    and the model's own end-of-sequence ids end it too (``ignore_eos`` switches the model's own
    off).
    """

    max_tokens: int = 128  # generated at most
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Fence:
    """A point that a queue of device work will reach: its ``seq``-th piece of work is complete."""

    queue: str
    seq: int


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
class AdapterBatch:
    """Which adapter each sequence of a step uses, each ``[num_seqs]``.

    ``rows`` are rows of the block table, which list the adapter's pages; 0 is the base model.
    ``layouts`` say what lies where in them. The adapter is in force from position ``starts`` on.
    """

    rows: Int32s
    layouts: Int32s
    starts: Int32s


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
    adapters: AdapterBatch | None = None  # None: every sequence runs on the base model

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


@dataclass(frozen=True, slots=True)
class Step:
    """A launched batch. ``fence`` is reached when the device has finished it; ``handle`` is the
    runner's."""

    step: int
    fence: Fence
    handle: Any = field(repr=False)


class Runner(Protocol):
    """Runs batches, in launch order. ``collect`` is called once per step, in the same order.

    ``steps_in_flight`` is how many steps may be launched and not collected (1 or 2).
    """

    steps_in_flight: int

    def launch(self, batch: Batch) -> Step: ...

    def collect(self, step: Step) -> StepOutput: ...
