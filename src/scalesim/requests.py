"""Requests and replies, and the checks between a user and the engine. All in the caller's thread.

A request that is refused here has cost nobody anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from scalesim.checks import (
    INT64,
    agent_id,
    number,
    one_of,
    reading,
    refuse,
    shown,
    text,
    whole,
)
from scalesim.core import AgentId, FinishReason, Floats, Int32s, LogProbs, Pooling, SamplingParams
from scalesim.errors import PromptTooLongError, RequestError

if TYPE_CHECKING:
    from scalesim.model.chat import ChatTemplate
    from scalesim.model.tokenizer import Tokenizer
    from scalesim.structure import Structures

MAX_PRIORITY = 10**6
OVERFLOWS = ("error", "drop_oldest")
POOLINGS = ("last", "mean")
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
        """The ids of ``prompt``, a copy, checked but for their number. Raises ``RequestError``."""
        if isinstance(prompt, str):
            plain = text("prompt", prompt)
            ids: Any = plain and self._known(self._tokenizer("a text prompt").encode(plain))
        elif not is_listed(prompt):
            refuse("prompt", prompt, f"is a {type(prompt).__name__}; {_PROMPTS}")
        else:
            with reading("prompt"):
                ids = self._render(prompt) if is_chat(prompt) else np.array(prompt)
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

    def _render(self, messages: Any) -> list[int]:
        if self.template is None:
            raise RequestError(
                "messages given, but the model has no chat template; "
                "give a text prompt or token ids"
            )
        text = self.template.render(messages, add_generation_prompt=True)
        return self._known(self._tokenizer("a chat").encode(text, add_special_tokens=False))

    def _tokenizer(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError(f"{what} needs a tokenizer and this model has none; give token ids")
        return self.tokenizer

    def _checked(self, ids: Any) -> Int32s:
        array = np.asarray(ids) if len(ids) else _NO_IDS
        if array.size == 0:
            raise RequestError("the prompt is empty; it must have at least one token")
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
        return array.astype(np.int32, copy=False)

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


_NO_IDS: Int32s = np.empty(0, np.int32)
_PROMPTS = "it must be text, a list of token ids, or a list of messages (dicts)"


def is_listed(prompt: object) -> bool:
    """Whether ``prompt`` has an order and a length: a list, an array, a tensor."""
    if isinstance(prompt, (list, tuple, np.ndarray)):
        return not isinstance(prompt, np.ndarray) or prompt.ndim > 0
    is_sequence = isinstance(prompt, Sequence) or hasattr(type(prompt), "__array__")
    return is_sequence and hasattr(type(prompt), "__len__") and not isinstance(prompt, _BYTES)


def is_chat(prompt: Any) -> bool:
    """Whether ``prompt``, which is listed, lists messages."""
    return len(prompt) > 0 and isinstance(prompt[0], Mapping)


_BYTES = (bytes, bytearray, memoryview)


def check_kind(request: object) -> None:
    """Raise ``RequestError`` for what is no ``Request`` with ``SamplingParams``."""
    if not isinstance(request, Request):
        raise RequestError(
            f"{shown(request)} is a {type(request).__name__}; a call takes a Request: "
            "Request(prompt), or an agent's request(prompt)"
        )
    if not isinstance(request.params, SamplingParams):
        hint = "write params=SamplingParams(max_tokens=64)"
        refuse("params", request.params, f"must be a SamplingParams; {hint}")


def checked_call(request: Request) -> Request:
    """``request`` with plain values, but for its prompt and its parameters: itself where it has
    them already. Raises ``RequestError`` for the first one that breaks its rule."""
    check_kind(request)
    if _is_usual(request):
        return request
    return Request(
        request.prompt,
        agent=None if request.agent is None else agent_id(request.agent),
        params=request.params,
        timeout=None if request.timeout is None else _timeout(request.timeout),
        sample_index=whole("sample_index", request.sample_index, 0),
        deadline=None if request.deadline is None else _deadline(request.deadline),
        priority=whole("priority", request.priority, -MAX_PRIORITY, MAX_PRIORITY),
        on_overflow=_on_overflow(request.on_overflow),
        pooling=None if request.pooling is None else check_pooling(request.pooling),
    )


def _is_usual(request: Request) -> bool:
    """By type and identity: an object's own ``==`` proves nothing."""
    agent, timeout, deadline = type(request.agent), request.timeout, request.deadline
    return (
        type(request) is Request
        and (request.agent is None or agent is str or agent is int)
        and (timeout is None or (type(timeout) is float and timeout > 0.0))
        and (deadline is None or (type(deadline) is float and math.isfinite(deadline)))
        and request.pooling is None
        and type(request.sample_index) is int
        and 0 <= request.sample_index < INT64
        and type(request.priority) is int
        and -MAX_PRIORITY <= request.priority <= MAX_PRIORITY
        and type(request.on_overflow) is str
        and request.on_overflow in OVERFLOWS
    )


def _timeout(value: object) -> float:
    if isinstance(value, (float, np.floating)) and value == math.inf:
        return math.inf  # none
    found = number("timeout", value)
    if not found > 0.0:
        refuse("timeout", value, "must be above 0 seconds")
    return found


def _deadline(value: object) -> float:
    try:
        return number("deadline", value)
    except RequestError as error:
        raise RequestError(f"{error}: a time of time.monotonic()") from None


def _on_overflow(value: Any) -> OnOverflow:
    if callable(value):
        return value  # type: ignore[no-any-return]
    if not isinstance(value, str) or (plain := text("on_overflow", value)) not in OVERFLOWS:
        rule = "must be 'error', 'drop_oldest' or a function that shortens"
        refuse("on_overflow", value, rule)
    return plain  # type: ignore[return-value]


def check_pooling(value: object) -> Pooling:
    """Raise ``RequestError`` for what is no pooling."""
    return one_of("pooling", value, POOLINGS)  # type: ignore[return-value]
