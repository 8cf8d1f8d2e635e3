"""A sequence: one request on its way through the engine, and where it stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeAlias

import numpy as np

from scalesim.core import AgentId, FinishReason, Int32s
from scalesim.memory.lease import AttachmentUse, Lease
from scalesim.sampling.embedding import EmbeddingLog
from scalesim.sampling.logits import LogitsProcessor
from scalesim.sampling.logprobs import LogprobsLog
from scalesim.sampling.params import SamplingParams


class Phase(Enum):
    WAITING = "waiting"  # holds nothing
    LOADING = "loading"  # holds its pages; copies are under way
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


class Observer(Protocol):
    """Sees every token as it is collected; may end the sequence (a stop string)."""

    def push(self, token_id: int) -> bool: ...


@dataclass(eq=False, slots=True)
class Sequence:
    """``tokens`` are the prompt and, after a preemption, what was generated before it. ``key`` is
    the Philox key of its draws. ``stop_ids`` end it. ``limit`` is prompt plus output, in tokens.
    ``priority``: lower goes first; it becomes the lowest when the sequence was overtaken too
    often. ``on_end`` is called once, while the pages are still held: what the end says of the
    agent's next call then orders them once, not twice."""

    id: int
    agent: AgentId | None
    tokens: Int32s
    prompt_len: int
    limit: int
    params: SamplingParams
    key: int
    attachments: tuple[AttachmentUse, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    observer: Observer | None = None
    on_end: Callable[[AgentId], None] | None = None
    adjust: LogitsProcessor | None = None  # where its logits are changed before they are sampled
    priority: float = 0
    leaves_nothing: bool = False  # its agent was forgotten: what it computes goes with it
    followers: list[Sequence] = field(default_factory=list)  # wait until its prompt is computed
    embedding_log: EmbeddingLog | None = None  # where it is to be embedded
    score_log: LogprobsLog | None = None  # where log-probabilities are asked for
    phase: Phase = Phase.WAITING
    slot: int = 0
    lease: Lease | None = None
    admission: int = 0  # order of admission; kept over a preemption
    skipped: int = 0  # admissions that overtook it
    num_preemptions: int = 0
    num_observed: int = 0  # tokens that the observer was given
    failed_reads: int = 0  # of its attachments, without a word from the source
    cached_tokens: int = 0  # of the prompt, at the first admission
    host_tokens: int = 0  # of those: loaded
    rebuilt_tokens: int = 0  # computed again
    first_step: int | None = None  # the one that sampled its first token
    output: Int32s = field(default_factory=lambda: np.empty(0, np.int32))
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    digest: int = 0  # over the digests of its tokens' logits, in order

    @property
    def usable(self) -> int:
        """How many of its first tokens a lease may look up."""
        if self.embedding_log is not None:
            return self.embedding_log.usable()
        count = len(self.tokens)
        return count if self.score_log is None else self.score_log.usable(count)

    def say_end(self) -> None:
        on_end, self.on_end = self.on_end, None
        if on_end is not None and self.agent is not None:
            on_end(self.agent)

    def admitted(self, lease: Lease, admission: int, block_size: int) -> None:
        """It holds ``lease``, and what the look-up found is noted. ``admission`` is its place in
        the order, if this is its first."""
        self.lease = lease
        if self.admission:
            self.rebuilt_tokens += max(0, len(self.tokens) - 1 - lease.num_cached)
            return
        self.admission = admission
        self.cached_tokens = lease.num_cached
        self.host_tokens = lease.num_waited_blocks * block_size
        self.rebuilt_tokens = lease.num_rebuilt_blocks * block_size


Chunk: TypeAlias = "tuple[Sequence, int]"
"""A sequence, and how many tokens of its prompt a step computes."""
