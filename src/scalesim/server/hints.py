"""Hints over HTTP: who calls when, with a call or in bulk, and the simulation's clock.

A hint is advice: it costs or saves time and changes no text. What is wrong with a body is told in
its reply; a single entry that says nothing is counted, and ends nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from scalesim.checks import number, shown
from scalesim.distance.clock import MAX_TIME
from scalesim.errors import RequestError, UnknownAgentError
from scalesim.server.body import body_bytes, read_json
from scalesim.server.endpoint import Endpoint
from scalesim.server.errors import bad
from scalesim.server.gate import admission_of
from scalesim.server.identity import Caller, agent_name, scoped
from scalesim.server.service import Service

MAX_ENTRIES = 100_000
_MAX_NAMED = 32  # agents that a reply names
_CALL = "scalesim.call"


def scope_of(request: HttpRequest) -> str:
    """What tells the agents of this request's key from those of other keys; empty with one key."""
    tenant = admission_of(request).tenant
    return "" if tenant is None else tenant.hex()


def salt_of(scope: str, given: str | None) -> str | None:
    """The ``cache_salt`` of a request: its key, where there are several, and what the client
    gave."""
    return f"{scope}:{given or ''}" if scope or given is not None else None


# -- with a call ---------------------------------------------------------------------------------


class CallHint(NamedTuple):
    """What a call says of its agent's next one: at ``time`` of the clock, by ``confidence``."""

    time: float
    confidence: float


class _CallerOfRequest(NamedTuple):
    caller: Caller
    hint: CallHint | None


def begin_call(
    service: Service, request: HttpRequest, body: Mapping[str, Any], alias: str | None
) -> Caller:
    """The caller of ``body``, until ``end_call``. ``sim_tick`` moves the clock on at once; the hint
    takes effect when the call is over, and counts from its beginning. Raises ``RequestError``."""
    path_agent = request.path_params.get("agent")
    scope = scope_of(request)
    caller = service.identity.who_calls(body, request.headers, path_agent, alias, scope)
    hint = _hint_of(service, body)
    if caller.agent is not None and (hint is not None or body.get("sim_tick") is not None):
        caller.hint = "used"
    end_call(service, request)  # of the same request, nothing else is open
    request.scope[_CALL] = _CallerOfRequest(caller.__enter__(), hint)
    return caller


def end_call(service: Service, request: HttpRequest) -> None:
    """The request is answered, or failed. No effect where none was begun."""
    call: _CallerOfRequest | None = request.scope.pop(_CALL, None)
    if call is None:
        return
    call.caller.__exit__(None, None, None)
    if call.hint is not None and call.caller.agent is not None:
        with suppress(UnknownAgentError):  # forgotten meanwhile, or refused before it was made
            service.engine.expect(
                call.caller.agent, at=call.hint.time, confidence=call.hint.confidence
            )


def _hint_of(service: Service, body: Mapping[str, Any]) -> CallHint | None:
    tick, wait = body.get("sim_tick"), body.get("next_call_in")
    confidence = body.get("hint_confidence")
    confidence = 1.0 if confidence is None else number("hint_confidence", confidence, 0.0, 1.0)
    wait = None if wait is None else number("next_call_in", wait, 0.0, MAX_TIME)
    if tick is not None:
        tick = number("sim_tick", tick, 0.0, MAX_TIME)
        _move_to(service, tick)
    if wait is None:
        return None
    now = service.engine.clock.now if tick is None else tick
    return CallHint(min(now + wait, MAX_TIME), confidence)


def _move_to(service: Service, tick: float) -> None:
    """To a time that is past, or becomes so meanwhile, the clock does not move."""
    if tick > service.engine.clock.now:
        with suppress(RequestError):
            service.engine.tick(to=tick)


# -- in bulk -------------------------------------------------------------------------------------


class HintBatch(NamedTuple):
    """Hints by name, as they were given: ``relative`` in ticks from now, ``absolute`` on the clock,
    and who calls at once. ``sure`` has the probabilities of those that come with one; ``ignored``
    names those whose time or probability is none."""

    relative: dict[str, float]
    absolute: dict[str, float]
    interrupts: list[str]
    confidence: float
    sure: dict[str, float]
    ignored: list[str]

    def __len__(self) -> int:
        return len(self.relative) + len(self.absolute) + len(self.interrupts)


def batch_of(body: Mapping[str, Any]) -> HintBatch:
    """The hints of a body::

        {"in": {"ada": 3, "bob": [12, 0.4]}, "at": {"cy": 17.5}, "interrupt": ["dee"],
         "confidence": 0.9}

    Raises 400 for what is no such body, or has more than ``MAX_ENTRIES``."""
    given = (body.get(field) for field in ("in", "at", "interrupt"))
    count = sum(len(part) for part in given if isinstance(part, (dict, list)))
    if count > MAX_ENTRIES:
        raise bad(f"the body gives {count} hints; at most {MAX_ENTRIES} at once")
    confidence = body.get("confidence")
    sure: dict[str, float] = {}
    ignored: list[str] = []
    batch = HintBatch(
        _times(body, "in", sure, ignored),
        _times(body, "at", sure, ignored),
        _names(body.get("interrupt")),
        1.0 if confidence is None else number("confidence", confidence, 0.0, 1.0),
        sure,
        ignored,
    )
    if not len(batch) and not ignored:
        raise bad(
            'the body gives no hint: {"in": {agent: ticks}}, {"at": {agent: time}} or '
            '{"interrupt": [agent]}'
        )
    return batch


def _times(
    body: Mapping[str, Any], field: str, sure: dict[str, float], ignored: list[str]
) -> dict[str, float]:
    given = body.get(field)
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise bad(f"{field}={shown(given)} must be an object of times by agent", field)
    if not given:
        return {}
    if not "".join(given).isprintable():
        agent_name(field, next(name for name in given if not name.isprintable()))
    agent_name(field, max(given, key=len))
    agent_name(field, min(given, key=len))
    values = list(given.values())
    with suppress(OverflowError):  # a whole number of hundreds of digits
        if set(map(type, values)) <= {int, float} and np.isfinite(np.array(values, float)).all():
            return given  # as nearly always: no look at each
    times = {}
    for name, value in given.items():
        try:
            if isinstance(value, list) and len(value) == 2:
                value, sure[name] = value[0], number(field, value[1], 0.0, 1.0)
            times[name] = number(field, value)
        except RequestError:
            ignored.append(name)
    return times


def _names(given: Any) -> list[str]:
    if given is None:
        return []
    if not isinstance(given, list):
        raise bad(f"interrupt={shown(given)} must be a list of agents", "interrupt")
    return [agent_name("interrupt", name) for name in given]


def hear(service: Service, batch: HintBatch, scope: str) -> dict[str, Any]:
    """Tell the engine of ``batch``; returns what became of it. Agents that nobody knows are made,
    as long as there is room for them."""
    engine, identity = service.engine, service.identity
    missing: list[str] = []

    def known(names: list[str]) -> list[str]:
        ids = [scoped(name, scope) for name in names] if scope else names
        there, others = identity.let_in(ids)
        missing.extend(others)
        for id in engine.memory.unknown(there):
            engine.agent(id)
        return there

    for times, is_absolute in ((batch.relative, False), (batch.absolute, True)):
        if not times:
            continue
        ids = known(list(times))
        if len(ids) == len(times):
            by_id = dict(zip(ids, times.values(), strict=True))
        else:
            there = set(ids)
            by_id = {id: at for name, at in times.items() if (id := scoped(name, scope)) in there}
        confidence: float | dict[Any, float] = batch.confidence
        if batch.sure:
            confidence = {
                scoped(name, scope): batch.sure.get(name, batch.confidence) for name in times
            }
        engine.expect(by_id, confidence=confidence, absolute=is_absolute)  # type: ignore[arg-type]
    for id in known(batch.interrupts):
        engine.wake(id)
    return {
        "accepted": len(batch) - len(missing),
        "ignored": len(batch.ignored),
        "ignored_agents": batch.ignored[:_MAX_NAMED],
        "missing": len(missing),
        "missing_agents": [id.removeprefix(scoped("", scope)) for id in missing[:_MAX_NAMED]],
    }


async def hints(service: Service, request: HttpRequest) -> Response:
    """Answer ``POST /v1/agents/hints``."""
    body = await read_json(service, request)
    batch = await service.off_loop(body_bytes(request), partial(batch_of, body))
    return JSONResponse(hear(service, batch, scope_of(request)))


async def tick(service: Service, request: HttpRequest) -> Response:
    """Answer ``POST /v1/sim/tick``: ``{"n": 1}`` ticks on, or ``{"to": 17}``; to a time that is
    past, the clock does not move."""
    body = await read_json(service, request)
    n, to = body.get("n"), body.get("to")
    if to is not None:
        if n is not None:
            raise bad("give n, a number of ticks, or to, a time; not both", "n")
        _move_to(service, number("to", to, 0.0, MAX_TIME))
    else:
        service.engine.tick(number("n", 1.0 if n is None else n, 0.0, MAX_TIME, above=True))
    return JSONResponse({"tick": await service.engine.memory.clock_async()})


ENDPOINTS = [
    Endpoint("/v1/agents/hints", ("POST",), hints),
    Endpoint("/v1/sim/tick", ("POST",), tick),
]
