"""The rules of ``SamplingParams``: what each parameter may be. Checked on the caller's thread."""

from __future__ import annotations

import math

import numpy as np

from scalesim.core import MAX_LOGPROBS, SamplingParams
from scalesim.errors import RequestError


def check_params(params: SamplingParams, vocab_size: int, has_logits: bool = True) -> None:
    """Raise ``RequestError`` for the first parameter out of range, or one that needs logits where
    the runner has none."""
    _whole("max_tokens", params.max_tokens, 0 if params.prompt_logprobs is not None else 1)
    _whole("top_k", params.top_k, 0)
    _number("temperature", params.temperature, 0.0, math.inf)
    _number("top_p", params.top_p, 0.0, 1.0)
    if params.top_p == 0.0:
        raise RequestError("top_p=0 keeps no token; it must be above 0 and at most 1")
    if params.logprobs is not None or params.prompt_logprobs is not None:
        _check_logprobs(params)
        if not has_logits:
            raise RequestError("log-probabilities need a model; this engine's runner has no logits")
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


def _check_logprobs(params: SamplingParams) -> None:
    for name in ("logprobs", "prompt_logprobs"):
        value = getattr(params, name)
        if value is None:
            continue
        _whole(name, value, 0)
        if value > MAX_LOGPROBS:
            raise RequestError(
                f"{name}={value}: at most {MAX_LOGPROBS} likeliest tokens come with each token; "
                f"ask for 0 to {MAX_LOGPROBS}"
            )
    _whole("prompt_logprobs_start", params.prompt_logprobs_start, 1)


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
