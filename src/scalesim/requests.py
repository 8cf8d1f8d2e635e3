"""Requests and replies, and the checks between a user and the engine. All in the caller's thread.

A request that is refused here has cost nobody anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from scalesim.core import AgentId, FinishReason, Floats, Int32s, LogProbs, Pooling, SamplingParams
from scalesim.errors import PromptTooLongError, RequestError

if TYPE_CHECKING:
    from scalesim.model.chat import ChatTemplate
    from scalesim.model.tokenizer import Tokenizer
    from scalesim.structure import Structures

MAX_PRIORITY = 10**6
Message: TypeAlias = Mapping[str, Any]
Prompt: TypeAlias = "str | Sequence[int] | Int32s | Sequence[Message]"
Shorten: TypeAlias = Callable[[Prompt, int, int], Prompt]
"""(prompt, its tokens, the most that fit) to a shorter prompt; asked again while it is too long."""
OnOverflow: TypeAlias = 'Literal["error", "drop_oldest"] | Shorten'


@dataclass(frozen=True, slots=True)
class Request:
    """One call: text, token ids or chat messages, by an agent or by nobody.

    ``timeout`` in seconds from submission, ``deadline`` in seconds of ``time.monotonic()`` (which
    is an event loop's ``time()``): the earlier one counts, the time in a full queue included.
    ``sample_index`` tells apart several draws of one prompt. ``priority``: lower is served first;
    equal ones in order of arrival. ``on_overflow``: what happens to a prompt that leaves no room
    for ``max_tokens``: an error, the oldest messages or tokens are dropped, or the function
    shortens it. ``pooling``: generate nothing; the reply's ``embedding`` is the final hidden state
    of the last token, or the mean of all.
    """

    prompt: Prompt
    agent: AgentId | None = None
    params: SamplingParams = field(default_factory=SamplingParams)  # how tokens are drawn
    timeout: float | None = None
    sample_index: int = 0
    deadline: float | None = None
    priority: int = 0
    on_overflow: OnOverflow = "error"
    pooling: Pooling | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens: of the prompt, of those found in memory, of the output; and how often it was
    preempted.

    Of the cached tokens, ``host_tokens`` were loaded from host memory, the others lay on the
    device. ``rebuilt_tokens`` were computed again although they had been in memory: of what the
    agent's call before had left (as far as the prompt can still begin with it), and after a
    preemption.
    """

    prompt_tokens: int  # as rendered and tokenized
    cached_tokens: int  # of the prompt, found in memory
    output_tokens: int  # the one that ended it included
    num_preemptions: int  # how often it lost its pages to others, and went on later
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
    """What a call gave.

    ``text`` is ``None`` where the engine has no tokenizer. ``digest`` is a hash over the logits of
    every token, where the engine keeps it. ``latency_s`` from submission to the end. ``dropped``:
    what the prompt lost, where it was too long. Where they were asked for: ``embedding``,
    ``[hidden]`` fp32, and ``logprobs`` (of ``token_ids``) and ``prompt_logprobs``. ``others``:
    samples 2 to ``n``; ``samples`` has all, in order.
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


@dataclass(frozen=True, slots=True)
class TextModel:
    """What the model says of its tokens. ``max_len`` bounds prompt plus output; ``pool_len`` is
    what the device pool holds, ``model_len`` what the model takes. ``has_logits``: its runner can
    score, adjust and mask them; a stand-in for a model is given no such work. ``defaults``: what
    its generation_config.json says, as fields of ``SamplingParams``."""

    vocab_size: int
    eos_ids: frozenset[int]
    model_len: int
    pool_len: int
    tokenizer: Tokenizer | None = None
    template: ChatTemplate | None = None
    has_logits: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    structures: Structures | None = None

    @property
    def max_len(self) -> int:
        return min(self.model_len, self.pool_len)

    def token_ids(self, prompt: Prompt) -> Int32s:
        """The ids of ``prompt``, checked but for their number. Raises ``RequestError``."""
        if len(prompt) == 0:
            raise RequestError("the prompt is empty; it must have at least one token")
        if isinstance(prompt, str):
            ids: Any = self._known(self._tokenizer("a text prompt").encode(prompt))
        elif len(prompt) and isinstance(prompt[0], Mapping):
            ids = self._known(self._render(prompt))  # type: ignore[arg-type]
        else:
            ids = prompt
        return self._checked(ids)

    def _known(self, ids: list[int]) -> list[int]:
        """The ids of a text: the tokenizer may have more than the model has embeddings."""
        if ids and max(ids) >= self.vocab_size:
            token = self._tokenizer("a text prompt").decode([max(ids)], skip_special_tokens=False)
            raise RequestError(
                f"the text has {token!r}, token {max(ids)} of the tokenizer; the model's "
                f"vocabulary ends at {self.vocab_size - 1}: it has no such token, leave it out"
            )
        return ids

    def _render(self, messages: Sequence[Message]) -> list[int]:
        if self.template is None:
            raise RequestError(
                "messages given, but the model has no chat template; "
                "give a text prompt or token ids"
            )
        text = self.template.render(messages, add_generation_prompt=True)
        return self._tokenizer("a chat").encode(text, add_special_tokens=False)

    def _tokenizer(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError(f"{what} needs a tokenizer and this model has none; give token ids")
        return self.tokenizer

    def _checked(self, ids: Any) -> Int32s:
        if len(ids) == 0:
            raise RequestError("the prompt is empty; it must have at least one token")
        array = np.asarray(ids)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise RequestError(
                f"token ids must be whole numbers in one dimension, got {array.dtype} of shape "
                f"{array.shape}"
            )
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= self.vocab_size:
            bad = low if low < 0 else high
            raise RequestError(
                f"token id {bad} is outside the vocabulary, 0 to {self.vocab_size - 1}"
            )
        return array.astype(np.int32)

    def check_length(self, prompt_len: int, max_tokens: int) -> None:
        """Raise ``PromptTooLongError`` where prompt and output do not fit."""
        if prompt_len + max_tokens > self.max_len:
            raise self._too_long(prompt_len, max_tokens)

    def _too_long(self, prompt_len: int, max_tokens: int) -> PromptTooLongError:
        total = prompt_len + max_tokens
        if total > self.model_len:
            rule = f"the model takes {self.model_len} (max_model_len); shorten the prompt"
        else:
            rule = f"the device pool holds {self.pool_len}; raise device_memory"
        return PromptTooLongError(
            f"prompt of {prompt_len} tokens and max_tokens={max_tokens} make {total}; {rule} "
            "or lower max_tokens"
        )


def check_call(request: Request) -> None:
    """Raise ``RequestError`` for the first option of the call out of range."""
    if request.pooling not in (None, "last", "mean"):
        raise RequestError(f"pooling={request.pooling!r} must be 'last' or 'mean'")
    if request.timeout is not None and not request.timeout > 0:
        raise RequestError(f"timeout={request.timeout!r} must be above 0 seconds")
    if request.deadline is not None and not math.isfinite(request.deadline):
        raise RequestError(f"deadline={request.deadline!r} must be a time of time.monotonic()")
    priority = request.priority
    if not isinstance(priority, (int, np.integer)) or abs(priority) > MAX_PRIORITY:
        raise RequestError(
            f"priority={priority!r} must be a whole number from {-MAX_PRIORITY} to {MAX_PRIORITY}"
        )
