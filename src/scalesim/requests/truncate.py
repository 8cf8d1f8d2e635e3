"""Truncation of prompts that leave no room for their output. Prompts are never truncated
silently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from scalesim.checks import reading
from scalesim.core import Int32s
from scalesim.errors import PromptTooLongError
from scalesim.requests.prompt import (
    ChatPrompt,
    Message,
    OnOverflow,
    Prompt,
    Shorten,
    TextModel,
    is_chat,
    is_listed,
)
from scalesim.requests.reply import Dropped

TokenIds = Callable[[Prompt], Int32s]


def fit_prompt(
    prompt: Prompt, tokens: Int32s, max_tokens: int, how: OnOverflow, model: TextModel
) -> tuple[Int32s, Dropped | None]:
    """Shorten ``tokens``, the tokens of ``prompt``, to ``max_tokens`` in the way ``how``; also
    return what was dropped.

    Tokens that cannot be shortened enough are returned as they are: the caller's check of the
    length refuses them, with the reason. Raises what a function ``how`` raises, and
    ``RequestError`` if the function returns no prompt.
    """
    if len(tokens) <= max_tokens or max_tokens < 1 or (isinstance(how, str) and how == "error"):
        return tokens, None
    chat = prompt if isinstance(prompt, ChatPrompt) else ChatPrompt(())

    def token_ids(shorter: Prompt) -> Int32s:
        if _num_messages(shorter):  # for the template that saw the whole prompt, with its tools
            shorter = replace(chat, messages=shorter, text=None)  # type: ignore[arg-type]
        return model.token_ids(shorter)

    listed: Any = chat.messages if chat is prompt else prompt
    if callable(how):
        kept, shorter = _shortened(listed, tokens, max_tokens, how, token_ids)
        messages = max(0, _num_messages(listed) - _num_messages(shorter))
    elif _num_messages(listed):
        with reading("messages"):
            kept, messages = _newest_turns(list(listed), tokens, max_tokens, token_ids)
    else:
        kept, messages = _newest_tokens(prompt, tokens, max_tokens, model), 0
    num_dropped = len(tokens) - len(kept)
    return kept, Dropped(num_dropped, messages) if num_dropped else None


def _shortened(
    prompt: Prompt, tokens: Int32s, max_tokens: int, shorten: Shorten, token_ids: TokenIds
) -> tuple[Int32s, Prompt]:
    while len(tokens) > max_tokens:
        prompt = shorten(prompt, len(tokens), max_tokens)
        shorter = token_ids(prompt)
        if len(shorter) >= len(tokens):
            raise PromptTooLongError(
                f"on_overflow made {len(shorter)} tokens of {len(tokens)}; at most {max_tokens} "
                "fit: it must make the prompt shorter each time"
            )
        tokens = shorter
    return tokens, prompt


def _newest_turns(
    chat: Sequence[Message], tokens: Int32s, max_tokens: int, token_ids: TokenIds
) -> tuple[Int32s, int]:
    """The tokens of the system message and of the newest turns that fit, and the number of messages
    dropped. A turn begins with a user's message, because many templates refuse a chat that begins
    with an answer."""
    first = 1 if chat[0].get("role") in ("system", "developer") else 0
    starts = [i for i in range(first + 1, len(chat)) if chat[i].get("role") == "user"]
    low, high, best = 0, len(starts), (tokens, 0)
    while low < high:  # binary search for the most turns that fit: more turns have more tokens
        middle = (low + high) // 2
        kept = token_ids([*chat[:first], *chat[starts[middle] :]])
        if len(kept) <= max_tokens:
            best, high = (kept, starts[middle] - first), middle
        else:
            low = middle + 1
    return best


def _newest_tokens(prompt: Any, tokens: Int32s, max_tokens: int, model: TextModel) -> Int32s:
    """The tokens that the tokenizer puts before every text, and the last tokens that fit."""
    start: list[int] = []
    if isinstance(prompt, str) and model.tokenizer is not None:
        start = model.tokenizer.encode("")
    head = len(start) if tokens[: len(start)].tolist() == start else 0
    if head >= max_tokens:
        return tokens
    return np.delete(tokens, slice(head, head + len(tokens) - max_tokens))


def _num_messages(prompt: Any) -> int:
    return len(prompt) if is_listed(prompt) and is_chat(prompt) else 0
