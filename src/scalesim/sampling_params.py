"""The rules of ``SamplingParams``: what each parameter may be. Checked on the caller's thread."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from scalesim.core import MAX_LOGPROBS, SamplingParams
from scalesim.errors import RequestError

MAX_TEMPERATURE = 1e6
"""Uniform for any model; far above, a token that is ruled out could come back."""
MAX_BIASES = 1024
MAX_SAMPLES = 1024


def check_params(params: SamplingParams, vocab_size: int, has_logits: bool = True) -> None:
    """Raise ``RequestError`` for the first parameter out of range, or one that needs logits where
    the runner has none."""
    if (new := _rarer(params)) != _PLAIN:
        _check_rarer(params, new, vocab_size, has_logits)
    check_whole("max_tokens", params.max_tokens, 0 if params.prompt_logprobs is not None else 1)
    check_whole("top_k", params.top_k, 0)
    check_number("temperature", params.temperature, 0.0, MAX_TEMPERATURE)
    check_number("top_p", params.top_p, 0.0, 1.0)
    if params.top_p == 0.0:
        raise RequestError("top_p=0 keeps no token; it must be above 0 and at most 1")
    if params.seed is not None:
        check_whole("seed", params.seed, -(2**63))
    if isinstance(params.stop, str) or not all(isinstance(s, str) and s for s in params.stop):
        raise RequestError(f"stop={params.stop!r} must be a tuple of strings that are not empty")
    for token in params.stop_token_ids:
        check_whole("stop_token_ids", token, 0)
        if token >= vocab_size:
            raise RequestError(
                f"stop token {token} is outside the vocabulary, 0 to {vocab_size - 1}"
            )


def _rarer(params: SamplingParams) -> tuple[object, ...]:
    """The parameters that few requests set: compared in one go."""
    return (
        params.min_p,
        params.presence_penalty,
        params.frequency_penalty,
        params.repetition_penalty,
        params.logit_bias,
        params.min_tokens,
        params.n,
        params.logprobs,
        params.prompt_logprobs,
        params.mask,
        params.json_schema,
        params.regex,
        params.grammar,
    )


_PLAIN = _rarer(SamplingParams())


def _check_rarer(
    params: SamplingParams, values: tuple[object, ...], vocab_size: int, has_logits: bool
) -> None:
    check_number("min_p", params.min_p, 0.0, 1.0)
    check_number("presence_penalty", params.presence_penalty, -2.0, 2.0)
    check_number("frequency_penalty", params.frequency_penalty, -2.0, 2.0)
    check_number("repetition_penalty", params.repetition_penalty, 0.01, 100.0)
    check_whole("min_tokens", params.min_tokens, 0)
    if params.min_tokens > params.max_tokens:
        raise RequestError(
            f"min_tokens={params.min_tokens} is more than max_tokens={params.max_tokens}; lower "
            "the one or raise the other"
        )
    check_whole("n", params.n, 1)
    if params.n > MAX_SAMPLES:
        raise RequestError(f"n={params.n}: at most {MAX_SAMPLES} samples a request; send several")
    if params.logit_bias is not None:
        _check_bias(params.logit_bias, vocab_size)
    _check_logprobs(params)
    _check_guides(params)
    if not has_logits and values[:6] + values[7:] != _PLAIN[:6] + _PLAIN[7:]:
        raise RequestError(
            "penalties, biases, masks, structure, min_p, min_tokens and log-probabilities need a "
            "model; this engine's runner has no logits"
        )


def _check_guides(params: SamplingParams) -> None:
    if params.mask is not None and not callable(params.mask):
        raise RequestError(f"mask={params.mask!r} must be a function of (prompt, output)")
    if params.json_schema is not None and not isinstance(params.json_schema, (str, Mapping)):
        raise RequestError(f"json_schema={params.json_schema!r} must be a mapping or JSON text")
    for name in ("regex", "grammar"):
        if not isinstance(getattr(params, name), (str, type(None))):
            raise RequestError(f"{name}={getattr(params, name)!r} must be a string")
    names = ("mask", "json_schema", "regex", "grammar")
    given = [name for name in names if getattr(params, name) is not None]
    if len(given) > 1:
        raise RequestError(f"{' and '.join(given)} are both given; a text follows one of them")


def _check_bias(biases: object, vocab_size: int) -> None:
    if not isinstance(biases, Mapping):
        raise RequestError(f"logit_bias={biases!r} must map token ids to numbers")
    if len(biases) > MAX_BIASES:
        raise RequestError(
            f"logit_bias names {len(biases)} tokens, at most {MAX_BIASES}; use mask= for more"
        )
    for token, bias in biases.items():
        check_whole("logit_bias token", token, 0)
        if token >= vocab_size:
            raise RequestError(
                f"logit_bias token {token} is outside the vocabulary, 0 to {vocab_size - 1}"
            )
        if bias != -math.inf:
            check_number(f"logit_bias[{token}]", bias, -100.0, 100.0)
    if sum(bias == -math.inf for bias in biases.values()) >= vocab_size:
        raise RequestError("logit_bias rules out every token; leave one")


def _check_logprobs(params: SamplingParams) -> None:
    for name in ("logprobs", "prompt_logprobs"):
        value = getattr(params, name)
        if value is None:
            continue
        check_whole(name, value, 0)
        if value > MAX_LOGPROBS:
            raise RequestError(
                f"{name}={value}: at most {MAX_LOGPROBS} likeliest tokens come with each token; "
                f"ask for 0 to {MAX_LOGPROBS}"
            )
    check_whole("prompt_logprobs_start", params.prompt_logprobs_start, 1)


def check_whole(name: str, value: object, least: int) -> None:
    """Raise ``RequestError`` for what is no whole number from ``least`` to 2**63 - 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise RequestError(f"{name}={value!r} must be a whole number, at least {least}")
    if value >= 2**63:
        raise RequestError(f"{name}={value!r} must be below 2**63")


def check_number(name: str, value: object, least: float, most: float) -> None:
    """Raise ``RequestError`` for what is no finite number from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)):
        raise RequestError(f"{name}={value!r} must be a number")
    if not (math.isfinite(value) and least <= value <= most):
        raise RequestError(f"{name}={value!r} must be finite, at least {least} and at most {most}")
