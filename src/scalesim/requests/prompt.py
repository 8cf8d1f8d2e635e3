"""Prompts: the forms that a prompt may have, and the text model that tokenizes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from scalesim.checks import reading, refuse, text
from scalesim.core import Int32s
from scalesim.errors import PromptTooLongError, RequestError
from scalesim.sampling.mask_hook import MaskHook
from scalesim.sampling.params import SamplingParams

if TYPE_CHECKING:
    from scalesim.model.text.chat import ChatTemplate
    from scalesim.model.text.token_stream import TokenStream
    from scalesim.model.text.tokenizer import Tokenizer
    from scalesim.sampling.grammar import Structures
    from scalesim.sampling.logits import TokenConstraint


Message: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages, with what else a chat template sees: ``tools``, which are JSON schemas, and
    ``variables``, such as ``enable_thinking``. ``text`` is the prompt that the template makes of
    them, where that is known already."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None


Prompt: TypeAlias = "str | Sequence[int] | Int32s | Sequence[Message] | ChatPrompt"


Shorten: TypeAlias = Callable[[Prompt, int, int], Prompt]
"""A function from a prompt, its number of tokens and the most tokens that fit to a shorter prompt.
It is called again while the prompt is too long."""
OnOverflow: TypeAlias = 'Literal["error", "drop_oldest"] | Shorten'


@dataclass(frozen=True, slots=True)
class TextModel:
    """The model's vocabulary and limits, as requests need them.

    ``max_len`` is the most tokens of a prompt with its output: no more than the model takes
    (``model_len``), and no more than the device pool holds (``pool_len``). ``has_logits`` says
    whether the runner can score, adjust and mask logits; a stand-in for a model cannot.
    ``defaults`` are the model's own sampling parameters, from its generation_config.json.
    """

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
        """The token ids of ``prompt``, as a copy. Raises ``RequestError``; the number of tokens is
        not checked."""
        if isinstance(prompt, str):
            plain = text("prompt", prompt)
            ids: Any = plain and self._known(self._tokenizer("a text prompt").encode(plain))
        elif isinstance(prompt, ChatPrompt):
            ids = self._encoded(prompt)
        elif not is_listed(prompt):
            refuse("prompt", prompt, f"is a {type(prompt).__name__}; {_PROMPTS}")
        else:
            with reading("prompt"):
                chat: Any = prompt if is_chat(prompt) else None
                ids = np.array(prompt) if chat is None else self._encoded(ChatPrompt(chat))
        return self._checked(ids)

    def _known(self, ids: list[int]) -> list[int]:
        """``ids``, which a tokenizer made. Raises ``RequestError`` for an id without an embedding:
        a tokenizer may have more tokens than the model."""
        if ids and max(ids) >= self.vocab_size:
            token = self._tokenizer("a text prompt").decode([max(ids)], skip_special_tokens=False)
            raise RequestError(
                f"the text has {token!r}, token {max(ids)} of the tokenizer; the model's "
                f"vocabulary ends at {self.vocab_size - 1}: it has no such token, leave it out"
            )
        return ids

    def render(self, chat: ChatPrompt) -> str:
        """The text that the chat template makes of ``chat``, up to where the answer begins."""
        with reading("prompt"):
            return self.chat_template.render(chat.messages, tools=chat.tools, **chat.variables)

    @property
    def chat_template(self) -> ChatTemplate:
        """The template. Raises ``RequestError`` where the model has none."""
        if self.template is None:
            raise RequestError(
                "messages given, but the model has no chat template; "
                "give a text prompt or token ids"
            )
        return self.template

    def _encoded(self, chat: ChatPrompt) -> list[int]:
        text = self.render(chat) if chat.text is None else chat.text
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
        """Raise ``PromptTooLongError`` if a prompt and its output do not fit."""
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

    def text_stream(self, stop: Sequence[str]) -> TokenStream | None:
        """A stream that turns tokens into text, and ends at ``stop``; ``None`` without a
        tokenizer."""
        if self.tokenizer is None:
            return None
        from scalesim.model.text.token_stream import TokenStream

        return TokenStream(self.tokenizer, stop)

    def stop_stream(self, stop: Sequence[str]) -> TokenStream:
        """``text_stream`` for a request that ends at ``stop``. Raises ``RequestError`` without a
        tokenizer."""
        stream = self.text_stream(stop)
        if stream is None:
            raise RequestError("stop strings need a tokenizer and this model has none; stop on ids")
        return stream

    def constraint_maker(
        self, params: SamplingParams, prompt_len: int
    ) -> Callable[[], TokenConstraint] | None:
        """What makes the constraint that ``params`` ask for; compiling a structure may take
        long. Raises ``RequestError`` or ``StructureError``."""
        if params.mask is not None:
            return partial(MaskHook, params.mask, prompt_len, self.vocab_size)
        if not params.is_structured:
            return None
        if self.structures is None:
            raise RequestError("structured output needs a tokenizer and this model has none")
        with reading("json_schema"):  # the other structures are text
            return self.structures.compile(params)


_NO_IDS: Int32s = np.empty(0, np.int32)
_PROMPTS = "it must be text, a list of token ids, or a list of messages (dicts)"


def is_listed(prompt: object) -> bool:
    """Whether ``prompt`` is a sequence with a length, such as a list, an array or a tensor, and not
    bytes."""
    if isinstance(prompt, (list, tuple, np.ndarray)):
        return not isinstance(prompt, np.ndarray) or prompt.ndim > 0
    is_sequence = isinstance(prompt, Sequence) or hasattr(type(prompt), "__array__")
    return is_sequence and hasattr(type(prompt), "__len__") and not isinstance(prompt, _BYTES)


def is_chat(prompt: Any) -> bool:
    """Whether a listed ``prompt`` is a list of messages."""
    return len(prompt) > 0 and isinstance(prompt[0], Mapping)


_BYTES = (bytes, bytearray, memoryview)
