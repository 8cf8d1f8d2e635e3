"""Log-probabilities in OpenAI's two shapes. They are the model's own: of its logits, before any
parameter changes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scalesim.batch_options import LogProbs
from scalesim.requests.reply import Reply

TokenText = Callable[[int], str]


def of_chat(found: LogProbs | None, text: TokenText) -> dict[str, Any] | None:
    """``choices[].logprobs`` of a chat."""
    if found is None:
        return None
    content = []
    for row in range(len(found)):
        near = zip(found.top_ids[row].tolist(), found.top_logprobs[row].tolist(), strict=True)
        content.append(
            {
                **_scored(int(found.token_ids[row]), float(found.logprobs[row]), text),
                "top_logprobs": [_scored(token, value, text) for token, value in near],
            }
        )
    return {"content": content, "refusal": None}


def of_completion(
    found: LogProbs | None, text: TokenText, offset: int = 0
) -> dict[str, Any] | None:
    """``choices[].logprobs`` of a completion, whose first token stands at character ``offset``."""
    if found is None:
        return None
    tokens = [text(token) for token in found.token_ids.tolist()]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": found.logprobs.tolist(),
        "top_logprobs": [
            dict(zip(map(text, ids), values, strict=True))
            for ids, values in zip(found.top_ids.tolist(), found.top_logprobs.tolist(), strict=True)
        ],
        "text_offset": offsets,
    }


def of_echo(reply: Reply, prompt_ids: list[int], text: TokenText) -> dict[str, Any] | None:
    """``choices[].logprobs`` of a completion that repeats its prompt: the first token has none, as
    nothing stands before it."""
    head = of_completion(reply.prompt_logprobs, text, len(text(prompt_ids[0])))
    if head is None:
        return None
    head["tokens"].insert(0, text(prompt_ids[0]))
    head["token_logprobs"].insert(0, None)
    head["top_logprobs"].insert(0, None)
    head["text_offset"].insert(0, 0)
    offset = sum(map(len, head["tokens"]))
    tail = of_completion(reply.logprobs, text, offset)
    return head if tail is None else {name: head[name] + tail[name] for name in head}


def _scored(token: int, value: float, text: TokenText) -> dict[str, Any]:
    written = text(token)
    return {"token": written, "logprob": value, "bytes": list(written.encode())}
