"""The rules of ``SamplingParams``, checked on the caller's thread. The checked parameters have
plain values, and copies of the lists and mappings that were given."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from functools import partial
from operator import attrgetter, is_, is_not
from typing import Any

import numpy as np

from scalesim.batch_options import MAX_LOGPROBS
from scalesim.checks import INT64, flag, function, number, reading, refuse, shown, text, whole
from scalesim.errors import RequestError
from scalesim.sampling.frame import Frame, FramedCalls
from scalesim.sampling.params import SamplingParams

MAX_TEMPERATURE = 1e6
"""Any model samples uniformly at this temperature; far above it, a token that is ruled out could be
sampled."""
MAX_BIASES = 1024
MAX_SAMPLES = 1024
MAX_STOPS = 4096
_INT32 = 2**31 - 1
_LEAST_TOP_P = float(np.finfo(np.float32).tiny)  # a smaller value is 0 in the kernels


def check_params(
    params: SamplingParams, vocab_size: int, has_logits: bool = True
) -> SamplingParams:
    """``params`` with plain values; the same object if its values are plain already. Raises
    ``RequestError`` for the first value that breaks its rule, or that needs logits of a runner
    without logits."""
    given = {name: value for name, value, default in zip(_RULES, _all(params), _ALL, strict=True)
             if value is not default}  # fmt: skip
    plain = {name: _RULES[name](name, value) for name, value in given.items()}
    if type(params) is not SamplingParams or any(map(is_not, plain.values(), given.values())):
        params = SamplingParams(**plain)
    _check_together(params, vocab_size, has_logits)
    return params


# -- single parameters ----------------------------------------------------------------------------


def _whole(minimum: int, maximum: int = INT64 - 1) -> Callable[[str, Any], int]:
    return partial(whole, minimum=minimum, maximum=maximum)


def _number(minimum: float, maximum: float) -> Callable[[str, Any], float]:
    return partial(number, minimum=minimum, maximum=maximum)


def _or_none(rule: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else rule(name, value)


def _top_p(name: str, value: object) -> float:
    if (found := number(name, value, 0.0, 1.0)) < _LEAST_TOP_P:
        raise RequestError(f"{name}={found:g} keeps no token; it must be above 0 and at most 1")
    return found


def _several(name: str, value: object, kind: type | tuple[type, ...], of: str) -> list[Any]:
    """The items of ``value``, or ``value`` as the only item if it is of ``kind``. An iterator is
    refused, because it can be read only once."""
    if value is None:
        return []
    if isinstance(value, kind):
        return [value]
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Collection):
        refuse(name, value, f"must be a list of {of}")
    with reading(name):
        found = list(value)
    if len(found) > MAX_STOPS:
        raise RequestError(f"{name} lists {len(found)}, at most {MAX_STOPS}")
    return found


def _stop(name: str, value: object) -> tuple[str, ...]:
    of = "strings that are not empty"
    found = _several(name, value, str, of)
    if not all(isinstance(string, str) for string in found):
        refuse(name, value, f"must be a list of {of}")
    return _same(value, tuple(text(name, string, empty=False) for string in found))


def _stop_token_ids(name: str, value: object) -> tuple[int, ...]:
    found = _several(name, value, (int, np.integer), "token ids")
    return _same(value, tuple(whole(name, token, 0) for token in found))


def _same(given: object, plain: tuple[Any, ...]) -> tuple[Any, ...]:
    """``given`` itself if its items are those of ``plain``, else ``plain``."""
    return given if type(given) is tuple and all(map(is_, given, plain)) else plain


def _logit_bias(name: str, value: object) -> dict[int, float]:
    if not isinstance(value, Mapping):
        refuse(name, value, "must map token ids to numbers")
    with reading(name):
        biases = list(value.items()) if len(value) <= MAX_BIASES else []
        count = len(value)
    if count > MAX_BIASES:
        raise RequestError(f"{name} names {count} tokens, at most {MAX_BIASES}; use mask= for more")
    return {whole(f"{name} token", token, 0): _bias(name, token, bias) for token, bias in biases}


def _bias(name: str, token: object, bias: object) -> float:
    if isinstance(bias, (float, np.floating)) and bias == -math.inf:
        return -math.inf
    return number(f"{name}[{shown(token)}]", bias, -100.0, 100.0)


def _logprobs(name: str, value: object) -> int:
    if (found := whole(name, value, 0)) > MAX_LOGPROBS:
        raise RequestError(
            f"{name}={found}: at most {MAX_LOGPROBS} likeliest tokens come with each token; "
            f"ask for 0 to {MAX_LOGPROBS}"
        )
    return found


def _samples(name: str, value: object) -> int:
    if (found := whole(name, value, 1)) > MAX_SAMPLES:
        raise RequestError(f"n={found}: at most {MAX_SAMPLES} samples a request; send several")
    return found


def _mask(name: str, value: object) -> object:
    function(name, value, "(prompt, output)")
    return value


def _schema(name: str, value: object) -> object:
    if isinstance(value, Mapping):
        return value  # it is written down as text before anything else
    if isinstance(value, str):
        return text(name, value)
    with reading(name):
        write = getattr(value, "model_json_schema", None)
        found = write() if callable(write) else None
    if not isinstance(found, Mapping):
        refuse(name, value, "must be a mapping, JSON text, or a class with model_json_schema()")
    return found


def _frame(name: str, value: object) -> Frame:
    if type(value) is not Frame:
        refuse(name, value, "must be a Frame")
    texts = [value.begin, value.end]
    if value.calls is not None:
        if type(value.calls) is not FramedCalls:
            refuse(f"{name}.calls", value.calls, "must be FramedCalls")
        texts += [value.calls.schema, value.calls.begin, value.calls.end, value.calls.between or ""]
    for part in texts:
        text(name, part)
    return value


_RULES: dict[str, Callable[[str, Any], Any]] = {
    "max_tokens": _whole(0),
    "temperature": _number(0.0, MAX_TEMPERATURE),
    "top_k": _whole(0, _INT32),
    "top_p": _top_p,
    "min_p": _number(0.0, 1.0),
    "presence_penalty": _number(-2.0, 2.0),
    "frequency_penalty": _number(-2.0, 2.0),
    "repetition_penalty": _number(0.01, 100.0),
    "logit_bias": _or_none(_logit_bias),
    "min_tokens": _whole(0),
    "n": _samples,
    "seed": _or_none(_whole(-INT64)),
    "stop": _stop,
    "stop_token_ids": _stop_token_ids,
    "ignore_eos": flag,
    "logprobs": _or_none(_logprobs),
    "prompt_logprobs": _or_none(_logprobs),
    "prompt_logprobs_start": _whole(1),
    "mask": _or_none(_mask),
    "json_schema": _or_none(_schema),
    "regex": _or_none(text),
    "grammar": _or_none(text),
    "frame": _or_none(_frame),
}
_all = attrgetter(*_RULES)
_ALL = _all(SamplingParams())
_CONSTRAINTS = ("mask", "json_schema", "regex", "grammar")
_of_logits = attrgetter(
    "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias",
    "min_tokens", "logprobs", "prompt_logprobs",
)  # fmt: skip


# -- parameters together --------------------------------------------------------------------------


def _check_together(params: SamplingParams, vocab_size: int, has_logits: bool) -> None:
    """Check the rules between parameters, and between parameters and the model. ``params`` are
    plain."""
    if params.max_tokens < 1 and params.prompt_logprobs is None:
        whole("max_tokens", params.max_tokens, 1)
    if params.min_tokens > params.max_tokens:
        raise RequestError(
            f"min_tokens={params.min_tokens} is more than max_tokens={params.max_tokens}; lower "
            "the one or raise the other"
        )
    for token in params.stop_token_ids:
        _check_token("stop_token_ids: token", token, vocab_size)
    if (biases := params.logit_bias) is not None:
        for token in biases:
            _check_token("logit_bias token", token, vocab_size)
        if sum(bias == -math.inf for bias in biases.values()) >= vocab_size:
            raise RequestError("logit_bias rules out every token; leave one")
    given = [name for name in _CONSTRAINTS if getattr(params, name) is not None]
    if len(given) > 1:
        raise RequestError(f"{' and '.join(given)} are both given; a text follows one of them")
    if params.frame is not None and (not params.is_structured or params.mask is not None):
        raise RequestError("frame is around a structure: give json_schema, regex or grammar too")
    if not has_logits and (
        params.is_structured or given or _of_logits(params) != _of_logits(SamplingParams())
    ):
        raise RequestError(
            "penalties, biases, masks, structure, min_p, min_tokens and log-probabilities need a "
            "model; this engine's runner has no logits"
        )


def _check_token(what: str, token: int, vocab_size: int) -> None:
    if token >= vocab_size:
        raise RequestError(f"{what} {token} is outside the vocabulary, 0 to {vocab_size - 1}")
