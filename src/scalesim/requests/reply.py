"""A reply: what a call gives back, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field

from scalesim.batch_options import LogProbs
from scalesim.core import AgentId, FinishReason, Floats


@dataclass(frozen=True, slots=True)
class Usage:
    """What a reply cost, in tokens; and how often the request was preempted.

    Of the cached tokens, ``host_tokens`` were loaded from host memory; the others lay on the
    device. ``rebuilt_tokens`` had been in memory and were computed again: state of the agent's
    previous call that this prompt begins with, and what a preemption cost.
    """

    prompt_tokens: int  # as rendered and tokenized
    cached_tokens: int  # of the prompt, found in memory
    output_tokens: int  # the one that ended it included
    num_preemptions: int  # how often the request lost its pages to others, and went on later
    host_tokens: int = 0
    rebuilt_tokens: int = 0

    @property
    def device_tokens(self) -> int:
        """Cached tokens that lay on the device."""
        return self.cached_tokens - self.host_tokens


@dataclass(frozen=True, slots=True)
class Dropped:
    """What ``on_overflow`` took away from a prompt: tokens, and messages where it was a chat."""

    tokens: int
    messages: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call gives back.

    ``text`` is ``None`` where the engine has no tokenizer. ``latency_s`` is from submission to the
    end. ``digest`` is a hash over the logits of every token, if the engine was asked to keep
    digests. ``dropped`` is what a prompt that was too long has lost. If the request asked for them,
    there are ``embedding`` (``[hidden]`` fp32), ``logprobs`` (of ``token_ids``) and
    ``prompt_logprobs``. ``others`` are samples 2 to ``n``; ``samples`` has all, in order.
    """

    agent: AgentId | None  # of the request
    text: str | None
    token_ids: tuple[int, ...]  # the one that ended it included
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
