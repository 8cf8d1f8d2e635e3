"""The rules of a ``Request``, except for its prompt and its sampling parameters.

They are checked on the caller's thread: a refused request has cost no other request anything.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scalesim.checks import INT64, agent_id, number, one_of, refuse, shown, text, whole
from scalesim.core import MAX_MORE_CALLS, Pooling
from scalesim.errors import RequestError
from scalesim.requests.prompt import OnOverflow
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams

MAX_PRIORITY = 10**6
MAX_SALT_CHARS = 1024
OVERFLOWS = ("error", "drop_oldest")
POOLINGS = ("last", "mean")


def checked_request(request: Request) -> Request:
    """``request`` with plain values; the same object if its values are plain already. Raises
    ``RequestError`` for the first value that breaks its rule."""
    _check_type(request)
    if _is_plain(request):
        return request
    return Request(
        request.prompt,
        agent=None if request.agent is None else agent_id(request.agent),
        params=request.params,
        timeout=None if request.timeout is None else _timeout(request.timeout),
        sample_index=whole("sample_index", request.sample_index, 0),
        deadline=None if request.deadline is None else _deadline(request.deadline),
        priority=whole("priority", request.priority, -MAX_PRIORITY, MAX_PRIORITY),
        more_calls=request.more_calls
        if request.more_calls is None
        else whole("more_calls", request.more_calls, 0, MAX_MORE_CALLS),
        on_overflow=_on_overflow(request.on_overflow),
        pooling=None if request.pooling is None else check_pooling(request.pooling),
        cache_salt=None if request.cache_salt is None else _cache_salt(request.cache_salt),
        adapter=None if request.adapter is None else text("adapter", request.adapter),
    )


def _check_type(request: object) -> None:
    """Raise ``RequestError`` unless ``request`` is a ``Request`` with ``SamplingParams``."""
    if not isinstance(request, Request):
        raise RequestError(
            f"{shown(request)} is a {type(request).__name__}; a call takes a Request: "
            "Request(prompt), or an agent's request(prompt)"
        )
    if not isinstance(request.params, SamplingParams):
        hint = "write params=SamplingParams(max_tokens=64)"
        refuse("params", request.params, f"must be a SamplingParams; {hint}")


def _is_plain(request: Request) -> bool:
    """Whether every value is plain and within its rule. Judged by type and identity, because the
    ``==`` of a caller's own class proves nothing."""
    agent, timeout, deadline = type(request.agent), request.timeout, request.deadline
    return (
        type(request) is Request
        and (request.agent is None or agent is str or agent is int)
        and (timeout is None or (type(timeout) is float and timeout > 0.0))
        and (deadline is None or (type(deadline) is float and math.isfinite(deadline)))
        and request.pooling is None
        and (
            request.adapter is None or (type(request.adapter) is str and request.adapter.isascii())
        )
        and (request.cache_salt is None or _is_plain_salt(request.cache_salt))
        and type(request.sample_index) is int
        and 0 <= request.sample_index < INT64
        and type(request.priority) is int
        and -MAX_PRIORITY <= request.priority <= MAX_PRIORITY
        and (
            request.more_calls is None
            or (type(request.more_calls) is int and 0 <= request.more_calls <= MAX_MORE_CALLS)
        )
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


def _is_plain_salt(value: object) -> bool:
    return type(value) is str and 0 < len(value) <= MAX_SALT_CHARS and value.isascii()


def _cache_salt(value: object) -> str:
    found = text("cache_salt", value, empty=False)
    if len(found) > MAX_SALT_CHARS:
        refuse("cache_salt", value, f"must have at most {MAX_SALT_CHARS} characters")
    return found


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
