"""Prompts that leave no room for their output: shortened as the request asks, never silently.

Pure; called by ``prepare`` on the caller's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scalesim.checks import reading
from scalesim.core import Int32s
from scalesim.errors import PromptTooLongError
from scalesim.requests.prompt import (
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


def fit(
    prompt: Prompt, tokens: Int32s, max_tokens: int, how: OnOverflow, model: TextModel
) -> tuple[Int32s, Dropped | None]:
    """The tokens of ``prompt`` (``tokens``, if they are at most ``max_tokens``), shortened as
    ``how`` says, and what was dropped.

    Tokens that are still too many are returned as they are: the check that follows knows the
    reason. Raises what a function in ``how`` raises, ``RequestError`` for no prompt that it gives.
    """
    if len(tokens) <= max_tokens or max_tokens < 1 or (isinstance(how, str) and how == "error"):
        return tokens, None
    if callable(how):
        kept, shorter = _shortened(prompt, tokens, max_tokens, how, model.token_ids)
        messages = max(0, _num_messages(prompt) - _num_messages(shorter))
    elif _num_messages(prompt):
        with reading("messages"):
            chat: list[Message] = list(prompt)  # type: ignore[arg-type]  # of messages
            kept, messages = _newest_turns(chat, tokens, max_tokens, model.token_ids)
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
    """The system message and the newest turns that fit. A turn begins with a user's message: many
    templates refuse a chat that begins with an answer."""
    first = 1 if chat[0].get("role") in ("system", "developer") else 0
    starts = [i for i in range(first + 1, len(chat)) if chat[i].get("role") == "user"]
    low, high, best = 0, len(starts), (tokens, 0)
    while low < high:  # the longest rest that fits; a longer rest has more tokens
        middle = (low + high) // 2
        kept = token_ids([*chat[:first], *chat[starts[middle] :]])
        if len(kept) <= max_tokens:
            best, high = (kept, starts[middle] - first), middle
        else:
            low = middle + 1
    return best


def _newest_tokens(prompt: Any, tokens: Int32s, max_tokens: int, model: TextModel) -> Int32s:
    """Those at the end, and before them what the tokenizer puts before every text."""
    start: list[int] = []
    if isinstance(prompt, str) and model.tokenizer is not None:
        start = model.tokenizer.encode("")
    head = len(start) if tokens[: len(start)].tolist() == start else 0
    if head >= max_tokens:
        return tokens
    return np.delete(tokens, slice(head, head + len(tokens) - max_tokens))


def _num_messages(prompt: Any) -> int:
    return len(prompt) if is_listed(prompt) and is_chat(prompt) else 0
