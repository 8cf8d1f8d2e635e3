"""Requests as tokens: numbers that are equal for equal text, so that nothing of the text is kept.

A real tokenizer is not needed for what they are used for: lengths within some ten percent, and
where two prompts begin to differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scalesim.core import Int32s
from scalesim.profile.calls import pseudo_tokens

_POSITIVE = 0x7FFF_FFFF
_NONE = np.empty(0, np.int32)


def tokens_of_text(text: str) -> Int32s:
    """``[n]``: the numbers of ``text``."""
    return (pseudo_tokens(text) & _POSITIVE).astype(np.int32)


def prompt_of(body: Mapping[str, Any]) -> Int32s:
    """``[n]``: the prompt of a chat or completion request. Tools stand behind the first message, as
    in most chat templates. What is no text counts as one token."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        return _legacy_prompt(body.get("prompt"))
    parts = [_message(message) for message in messages]
    if body.get("tools"):
        parts.insert(1, tokens_of_text(json.dumps(body["tools"])))
    return np.concatenate(parts) if parts else _NONE


def answer_of(content: str, tool_calls: Sequence[Any] = ()) -> Int32s:
    """``[n]``: an answer, numbered as the same text in the next request's assistant message."""
    return _message({"role": "assistant", "content": content, "tool_calls": list(tool_calls)})


def _message(message: Any) -> Int32s:
    if not isinstance(message, Mapping):
        return _NONE
    pieces = [tokens_of_text(f"<{message.get('role')}>")]
    content = message.get("content")
    for part in content if isinstance(content, list) else [content]:
        pieces.append(_part(part))
    if message.get("tool_calls"):
        pieces.append(tokens_of_text(json.dumps(_functions(message["tool_calls"]))))
    return np.concatenate(pieces)


def _part(part: Any) -> Int32s:
    if isinstance(part, str):
        return tokens_of_text(part)
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return tokens_of_text(part["text"])
    return _NONE if part is None else np.array([hash(str(part)) & _POSITIVE], np.int32)


def _functions(calls: Any) -> list[Any]:
    """Names and arguments; ids differ from run to run and are not part of the text."""
    found = [call.get("function") for call in calls if isinstance(call, Mapping)]
    return [
        [function.get("name"), function.get("arguments")]
        for function in found
        if isinstance(function, Mapping)
    ]


def _legacy_prompt(prompt: Any) -> Int32s:
    if isinstance(prompt, str):
        return tokens_of_text(prompt)
    if isinstance(prompt, list) and prompt and all(type(item) is int for item in prompt):
        return (np.array(prompt, np.int64) & _POSITIVE).astype(np.int32)
    if isinstance(prompt, list):  # several prompts: the first stands for all
        return next((_legacy_prompt(item) for item in prompt), _NONE)
    return _NONE
