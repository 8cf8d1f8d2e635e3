"""A reply: the result of a call, and its cost in tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from scalesim.batch_options import LogProbs
from scalesim.core import AgentId, FinishReason, Floats


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of a reply in tokens, and the number of preemptions.

    Of the cached tokens, ``host_tokens`` were loaded from host memory; the others lay on the
    device. ``rebuilt_tokens`` had been in memory and were computed again: state of the agent's
    previous call that this prompt begins with, and what a preemption cost.
    """

    prompt_tokens: int  # as rendered and tokenized
    cached_tokens: int  # of the prompt, whose KV was in memory
    output_tokens: int  # with the stop token
    num_preemptions: int  # how often the request lost its pages to other requests
    host_tokens: int = 0
    rebuilt_tokens: int = 0

    @property
    def device_tokens(self) -> int:
        """Cached tokens that lay on the device."""
        return self.cached_tokens - self.host_tokens


@dataclass(frozen=True, slots=True)
class Dropped:
    """The tokens that ``on_overflow`` cut from a prompt, and the messages if it was a chat."""

    tokens: int
    messages: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of a call.

    ``text`` is ``None`` if the engine has no tokenizer. ``latency_s`` is the time from submission
    to the end. ``digest`` is a hash over the logits of all tokens, if the engine keeps digests.
    ``dropped`` says what was cut from a prompt that was too long. ``embedding`` (``[hidden]``
    fp32), ``logprobs`` (of ``token_ids``) and ``prompt_logprobs`` are there if the request asked
    for them. ``others`` are samples 2 to ``n``; ``samples`` has all samples, in order.
    """

    agent: AgentId | None  # of the request
    text: str | None
    token_ids: tuple[int, ...]  # with the stop token
    finish_reason: FinishReason  # "stop": a stop token or string; "length": max_tokens
    usage: Usage
    latency_s: float
    digest: int = 0
    dropped: Dropped | None = None
    embedding: Floats | None = field(default=None, compare=False, repr=False)
    logprobs: LogProbs | None = field(default=None, compare=False, repr=False)
    prompt_logprobs: LogProbs | None = field(default=None, compare=False, repr=False)
    others: tuple[Reply, ...] = ()

    @property
    def samples(self) -> tuple[Reply, ...]:
        """All ``n`` samples, this one first."""
        return (self, *self.others)
