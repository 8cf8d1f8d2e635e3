"""Requests and replies, and the checks between a user and the engine. All in the caller's thread.

A request that is refused here has cost nobody anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from scalesim.checks import (
    INT64,
    agent_id,
    number,
    one_of,
    refuse,
    shown,
    text,
    whole,
)
from scalesim.core import AgentId, Pooling
from scalesim.errors import RequestError
from scalesim.requests.prompt import OnOverflow, Prompt
from scalesim.sampling.params import SamplingParams

if TYPE_CHECKING:
    pass

MAX_PRIORITY = 10**6
OVERFLOWS = ("error", "drop_oldest")
POOLINGS = ("last", "mean")


@dataclass(frozen=True, slots=True)
class Request:
    """One call: text, token ids or chat messages, by an agent or by nobody.

    ``timeout`` in seconds from submission, ``deadline`` in seconds of ``time.monotonic()`` (which
    is an event loop's ``time()``): the earlier one counts, the time in a full queue included.
    ``sample_index`` tells apart several draws of one prompt. ``priority``: lower is served first;
    equal ones in order of arrival. ``on_overflow``: what happens to a prompt that leaves no room
    for ``max_tokens``: an error, the oldest messages or tokens are dropped, or the function
    shortens it. ``pooling``: generate nothing; the reply's ``embedding`` is the final hidden state
    of the last token, or the mean of all.
    """

    prompt: Prompt
    agent: AgentId | None = None
    params: SamplingParams = field(default_factory=SamplingParams)  # how tokens are drawn
    timeout: float | None = None
    sample_index: int = 0
    deadline: float | None = None
    priority: int = 0
    on_overflow: OnOverflow = "error"
    pooling: Pooling | None = None


def check_kind(request: object) -> None:
    """Raise ``RequestError`` for what is no ``Request`` with ``SamplingParams``."""
    if not isinstance(request, Request):
        raise RequestError(
            f"{shown(request)} is a {type(request).__name__}; a call takes a Request: "
            "Request(prompt), or an agent's request(prompt)"
        )
    if not isinstance(request.params, SamplingParams):
        hint = "write params=SamplingParams(max_tokens=64)"
        refuse("params", request.params, f"must be a SamplingParams; {hint}")


def checked_call(request: Request) -> Request:
    """``request`` with plain values, but for its prompt and its parameters: itself where it has
    them already. Raises ``RequestError`` for the first one that breaks its rule."""
    check_kind(request)
    if _is_usual(request):
        return request
    return Request(
        request.prompt,
        agent=None if request.agent is None else agent_id(request.agent),
        params=request.params,
        timeout=None if request.timeout is None else _timeout(request.timeout),
        sample_index=whole("sample_index", request.sample_index, 0),
        deadline=None if request.deadline is None else _deadline(request.deadline),
        priority=whole("priority", request.priority, -MAX_PRIORITY, MAX_PRIORITY),
        on_overflow=_on_overflow(request.on_overflow),
        pooling=None if request.pooling is None else check_pooling(request.pooling),
    )


def _is_usual(request: Request) -> bool:
    """By type and identity: an object's own ``==`` proves nothing."""
    agent, timeout, deadline = type(request.agent), request.timeout, request.deadline
    return (
        type(request) is Request
        and (request.agent is None or agent is str or agent is int)
        and (timeout is None or (type(timeout) is float and timeout > 0.0))
        and (deadline is None or (type(deadline) is float and math.isfinite(deadline)))
        and request.pooling is None
        and type(request.sample_index) is int
        and 0 <= request.sample_index < INT64
        and type(request.priority) is int
        and -MAX_PRIORITY <= request.priority <= MAX_PRIORITY
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
