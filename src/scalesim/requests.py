"""Requests and replies, and the checks between a user and the engine. All in the caller's thread.

A request that is refused here has cost nobody anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from scalesim.core import AgentId, FinishReason, Int32s, SamplingParams
from scalesim.errors import PromptTooLongError, RequestError

if TYPE_CHECKING:
    from scalesim.model.chat import ChatTemplate
    from scalesim.model.tokenizer import Tokenizer

Message: TypeAlias = Mapping[str, Any]
Prompt: TypeAlias = "str | Sequence[int] | Int32s | Sequence[Message]"


@dataclass(frozen=True, slots=True)
class Request:
    """One call: text, token ids or chat messages, by an agent or by nobody.

    ``timeout`` in seconds from submission; ``sample_index`` tells apart several draws of one
    prompt.
    """

    prompt: Prompt
    agent: AgentId | None = None
    params: SamplingParams = field(default_factory=SamplingParams)  # how tokens are drawn
    timeout: float | None = None
    sample_index: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens: of the prompt, of those found in memory, of the output; and how often it was
    preempted."""

    prompt_tokens: int  # as rendered and tokenized
    cached_tokens: int  # of the prompt, found in memory
    output_tokens: int  # the one that ended it included
    num_preemptions: int  # how often it lost its pages to others, and went on later


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call gave. ``text`` is ``None`` where the engine has no tokenizer. ``digest`` is a
    hash over the logits of every token, where the engine keeps it. ``latency_s`` from submission to
    the end."""

    agent: AgentId | None  # of the request
    text: str | None
    token_ids: tuple[int, ...]  # the one that ended it included
    finish_reason: FinishReason  # "stop": a stop token or string; "length": max_tokens
    usage: Usage
    latency_s: float
    digest: int = 0


@dataclass(frozen=True, slots=True)
class TextModel:
    """What the model says of its tokens. ``max_len`` bounds prompt plus output; ``pool_len`` is
    what the device pool holds, ``model_len`` what the model takes."""

    vocab_size: int
    eos_ids: frozenset[int]
    model_len: int
    pool_len: int
    tokenizer: Tokenizer | None = None
    template: ChatTemplate | None = None

    @property
    def max_len(self) -> int:
        return min(self.model_len, self.pool_len)

    def token_ids(self, prompt: Prompt) -> Int32s:
        """The ids of ``prompt``, checked. Raises ``RequestError`` or ``PromptTooLongError``."""
        if len(prompt) == 0:
            raise RequestError("the prompt is empty; it must have at least one token")
        if isinstance(prompt, str):
            ids: Any = self._tokenizer("a text prompt").encode(prompt)
        elif len(prompt) and isinstance(prompt[0], Mapping):
            ids = self._render(prompt)  # type: ignore[arg-type]
        else:
            ids = prompt
        return self._checked(ids)

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
        if len(ids) > self.max_len:
            raise self._too_long(len(ids), 1)
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


def check_params(params: SamplingParams, vocab_size: int) -> None:
    """Raise ``RequestError`` for the first parameter out of range."""
    _whole("max_tokens", params.max_tokens, 1)
    _whole("top_k", params.top_k, 0)
    _number("temperature", params.temperature, 0.0, math.inf)
    _number("top_p", params.top_p, 0.0, 1.0)
    if params.top_p == 0.0:
        raise RequestError("top_p=0 keeps no token; it must be above 0 and at most 1")
    if params.seed is not None:
        _whole("seed", params.seed, -(2**63))
    if isinstance(params.stop, str) or not all(isinstance(s, str) and s for s in params.stop):
        raise RequestError(f"stop={params.stop!r} must be a tuple of strings that are not empty")
    for token in params.stop_token_ids:
        _whole("stop_token_ids", token, 0)
        if token >= vocab_size:
            raise RequestError(
                f"stop token {token} is outside the vocabulary, 0 to {vocab_size - 1}"
            )


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise RequestError(f"{name}={value!r} must be a whole number, at least {least}")
    if value >= 2**63:
        raise RequestError(f"{name}={value!r} must be below 2**63")


def _number(name: str, value: object, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)):
        raise RequestError(f"{name}={value!r} must be a number")
    if not (math.isfinite(value) and least <= value <= most):
        raise RequestError(f"{name}={value!r} must be finite, at least {least} and at most {most}")
