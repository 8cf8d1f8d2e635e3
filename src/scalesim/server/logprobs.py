"""Log-probabilities in OpenAI's two shapes. They are the model's own: of its logits, before any
parameter changes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scalesim.batch_options import LogProbs

TokenText = Callable[[int], str]


def of_chat(logprobs: LogProbs, text: TokenText) -> list[dict[str, Any]]:
    """``choices[].logprobs.content`` of a chat."""
    return [
        {
            **_scored(int(token), float(value), text),
            "top_logprobs": [
                _scored(int(near), float(score), text)
                for near, score in zip(near_ids, scores, strict=True)
            ],
        }
        for token, value, near_ids, scores in zip(
            logprobs.token_ids,
            logprobs.logprobs,
            logprobs.top_ids,
            logprobs.top_logprobs,
            strict=True,
        )
    ]


def _scored(token: int, value: float, text: TokenText) -> dict[str, Any]:
    written = text(token)
    return {"token": written, "logprob": value, "bytes": list(written.encode())}
