"""A sequence: one request as the scheduler sees it, and how far it has come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeAlias

import numpy as np

from scalesim.core import AgentId, FinishReason, Int32s
from scalesim.memory.lease import AttachmentSpec, Lease
from scalesim.sampling.embedding import EmbeddingLog
from scalesim.sampling.logits import LogitsProcessor
from scalesim.sampling.logprobs import LogprobsLog
from scalesim.sampling.params import SamplingParams

_MASK64 = (1 << 64) - 1


class Phase(Enum):
    WAITING = "waiting"  # holds nothing
    LOADING = "loading"  # holds its pages; copies are under way
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


class Observer(Protocol):
    """Sees each token as it is collected; may end the sequence, for instance at a stop string."""

    def push(self, token_id: int) -> bool: ...


@dataclass(eq=False, slots=True)
class Sequence:
    """A prompt and its output. The first fields are what was asked for, the others what became of
    it.

    ``tokens`` are the prompt and, after a preemption, what was generated before. ``priority``:
    lower goes first; a sequence that was overtaken too often gets the lowest. ``work``: what its
    agent is expected to have generated from this call on until it calls no more in this tick, in
    tokens; 0 where nobody can say. Among equal priorities, the most work goes first. ``on_end`` is
    called once, while the pages are still held, so that what the end says of the agent's next call
    orders them once and not twice.
    """

    id: int
    agent: AgentId | None
    tokens: Int32s
    prompt_len: int
    limit: int  # tokens of prompt and output, at most
    params: SamplingParams
    key: int  # the Philox key of its draws
    attachments: tuple[AttachmentSpec, ...] = ()
    salt: bytes = b""  # tells its KV from others' of the same tokens
    stop_ids: frozenset[int] = frozenset()
    observer: Observer | None = None
    on_end: Callable[[AgentId], None] | None = None
    logits_processor: LogitsProcessor | None = None  # if its logits are changed before sampling
    priority: float = 0
    work: float = 0.0
    leaves_nothing: bool = False  # its agent was forgotten: what is computed goes with the lease
    followers: list[Sequence] = field(default_factory=list)  # samples that wait for this prompt
    embedding_log: EmbeddingLog | None = None  # if an embedding is asked for
    logprobs_log: LogprobsLog | None = None  # if log-probabilities are asked for
    phase: Phase = Phase.WAITING
    slot: int = 0
    lease: Lease | None = None
    admission: int = 0  # order of admission; kept over a preemption
    skipped: int = 0  # admissions that overtook this one
    num_preemptions: int = 0
    num_observed: int = 0  # tokens that the observer was given
    attachment_failures: int = 0  # failed loads of its attachments
    cached_tokens: int = 0  # of the prompt, at the first admission
    host_tokens: int = 0  # of those: loaded
    rebuilt_tokens: int = 0  # computed again
    first_step: int | None = None  # the step that sampled the first token
    output: Int32s = field(default_factory=lambda: np.empty(0, np.int32))
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    digest: int = 0  # over the digests of its tokens' logits, in order

    @property
    def usable(self) -> int:
        """How many of the first tokens a lease may look up."""
        if self.embedding_log is not None:
            return self.embedding_log.usable()
        count = len(self.tokens)
        return count if self.logprobs_log is None else self.logprobs_log.usable(count)

    def add_digest(self, digest: int) -> None:
        """Chain the digest of one more token's logits: order matters, and so does every term."""
        self.digest = ((self.digest ^ digest) * 0x9E3779B97F4A7C15 + 1) & _MASK64

    def say_end(self) -> None:
        """Call ``on_end``, unless that has happened."""
        on_end, self.on_end = self.on_end, None
        if on_end is not None and self.agent is not None:
            on_end(self.agent)

    def admitted(self, lease: Lease, admission: int) -> None:
        """The sequence holds ``lease`` now; note what the prefix lookup found. ``admission`` is the
        sequence's place in the order, unless it has one from an earlier admission."""
        self.lease = lease
        if self.admission:
            self.rebuilt_tokens += max(0, len(self.tokens) - 1 - lease.num_cached)
            return
        self.admission = admission
        self.cached_tokens = lease.num_cached
        self.host_tokens = lease.num_waited_blocks * lease.block_size
        self.rebuilt_tokens = lease.num_rebuilt_blocks * lease.block_size


Chunk: TypeAlias = "tuple[Sequence, int]"
"""A sequence, and how many tokens of its prompt a step computes."""
