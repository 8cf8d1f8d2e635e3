"""KV hint envelopes: the wire format in which orchestrators tell an engine what to do with KV.

    {"protocol_version": "1.0", "message_id": "m-1", "actions": [
        {"action_id": "a-1", "action_type": "kv.retain", "action_version": "1.0",
         "payload": {"session_id": "ada", "ttl_seconds": 60}}]}

Carried by a request as ``kv_hints``, or posted alone. Each action has its outcome: *accepted*;
*clipped*, where it was done in part or for a shorter time; *deferred*, where it takes effect later
than asked; *rejected*, where it cannot be read or is not ours; *missing*, where nothing is held of
what it names. One action's fault is no other's, and none costs the request anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from scalesim.checks import number, refuse, shown, text
from scalesim.core import AgentId
from scalesim.distance.clock import MAX_TIME
from scalesim.engine.memory_view import MAX_PIN_S
from scalesim.errors import RequestError, ScaleSimError, UnknownAgentError
from scalesim.server.body import read_json
from scalesim.server.endpoint import Endpoint
from scalesim.server.errors import ApiError, bad
from scalesim.server.hints import salt_of, scope_of
from scalesim.server.identity import Caller, agent_name, scoped, unscoped
from scalesim.server.service import Service

Outcome: TypeAlias = Literal["accepted", "clipped", "deferred", "rejected", "missing"]
MAX_ACTIONS = 256
MAX_AGENTS_AN_ACTION = 1024
DEFAULT_TTL_S = 60.0
_MAJOR = "1"
_MAX_ID_CHARS = 256


class Done(NamedTuple):
    """What became of an action, and why where it was not simply done."""

    outcome: Outcome
    reason: str = ""


class Addressed(NamedTuple):
    """The agents that an action is about; ``is_part``: only some of those that it names."""

    ids: list[str]
    is_part: bool = False


async def execute(service: Service, envelope: Any, scope: str) -> dict[str, Any]:
    """Do what ``envelope`` asks, in its order; returns the outcomes. Raises 400 for what is no
    envelope."""
    if not isinstance(envelope, Mapping):
        raise bad(f"kv_hints={shown(envelope)} must be an object", "kv_hints")
    version, actions = envelope.get("protocol_version"), envelope.get("actions")
    if not isinstance(version, str) or version.partition(".")[0] != _MAJOR:
        raise bad(
            f"kv_hints.protocol_version={shown(version)}: versions {_MAJOR}.x are read here",
            "kv_hints",
        )
    message_id = _id_of("kv_hints.message_id", envelope.get("message_id"))
    if not isinstance(actions, list) or len(actions) > MAX_ACTIONS:
        raise bad(f"kv_hints.actions must be a list of at most {MAX_ACTIONS} actions", "kv_hints")
    told = []
    for action in actions:
        id = action.get("action_id") if isinstance(action, Mapping) else None
        is_id = isinstance(id, str) and len(id) <= _MAX_ID_CHARS
        done = await _outcome(service, action, scope)
        row = {"action_id": id if is_id else None, "outcome": done.outcome}
        told.append({**row, "reason": done.reason} if done.reason else row)
    return {"protocol_version": f"{_MAJOR}.0", "message_id": message_id, "outcomes": told}


async def carry(
    service: Service, request: HttpRequest, body: Mapping[str, Any], caller: Caller
) -> None:
    """Execute what came with a call, as ``kv_hints``; the reply's header counts the outcomes. What
    cannot be read costs the call nothing."""
    envelope = body.get("kv_hints")
    if envelope is None:
        return
    try:
        told = await execute(service, envelope, scope_of(request))
    except (ApiError, RequestError):
        caller.outcomes = "unreadable"
        return
    counts = Counter(row["outcome"] for row in told["outcomes"])
    caller.outcomes = ", ".join(f"{outcome}={count}" for outcome, count in sorted(counts.items()))


async def _outcome(service: Service, action: Any, scope: str) -> Done:
    try:
        if not isinstance(action, Mapping):
            refuse("action", action, "must be an object")
        _id_of("action_id", action.get("action_id"))
        kind, version = action.get("action_type"), action.get("action_version")
        found = ACTIONS.get(kind) if isinstance(kind, str) else None
        if found is None:
            return Done("rejected", f"{shown(kind)} is not done here; {', '.join(ACTIONS)} are")
        if not isinstance(version, str) or version.partition(".")[0] != _MAJOR:
            return Done("rejected", f"{kind} of version {shown(version)}; {_MAJOR}.x is done here")
        payload = action.get("payload")
        if not isinstance(payload, Mapping):
            refuse("payload", payload, "must be an object")
        return await found(service, payload, scope)
    except UnknownAgentError:
        return Done("missing", "the agent has not called, nor was it spoken of")
    except ScaleSimError as error:
        return Done("rejected", str(error))


# -- what an action is about ---------------------------------------------------------------------


async def _target(service: Service, payload: Mapping[str, Any], scope: str) -> Addressed:
    """By ``agent_id`` or ``session_id``, by a list of ``agents``, or by a ``prefix``, as text or
    token ids: the agents whose state begins with that."""
    for field in ("agent_id", "session_id"):
        if payload.get(field) is not None:
            return Addressed([scoped(agent_name(field, payload[field]), scope)])
    if (names := payload.get("agents")) is not None:
        if not isinstance(names, list):
            refuse("agents", names, "must be a list of agents")
        ids = [scoped(agent_name("agents", name), scope) for name in names[:MAX_AGENTS_AN_ACTION]]
        unknown = set(service.engine.memory.unknown(ids))
        there = [id for id in ids if id not in unknown]
        return Addressed(there, len(there) < len(names))
    if (prefix := payload.get("prefix")) is not None:
        model = service.engine.model
        size = len(prefix) if isinstance(prefix, (str, list)) else 0
        tokens = await service.off_loop(size, lambda: model.token_ids(prefix))
        given = payload.get("cache_salt")
        salt = salt_of(scope, None if given is None else text("cache_salt", given))
        found = await service.engine.memory.agents_under_async(tokens.tolist(), cache_salt=salt)
        mine = [str(id) for id in found if unscoped(id, scope) is not None]
        return Addressed(mine[:MAX_AGENTS_AN_ACTION], len(mine) > MAX_AGENTS_AN_ACTION)
    raise RequestError("payload names nobody: give agent_id, session_id, agents or prefix")


def _done(target: Addressed, clipped: str = "") -> Done:
    if not target.ids:
        return Done("missing", "no agent here has state of this")
    if target.is_part:
        return Done("clipped", "for those of the agents that there are")
    return Done("clipped", clipped) if clipped else Done("accepted")


# -- the actions ---------------------------------------------------------------------------------


async def _retain(service: Service, payload: Mapping[str, Any], scope: str) -> Done:
    """A pin for ``ttl_seconds``."""
    given = payload.get("ttl_seconds")
    seconds = DEFAULT_TTL_S if given is None else number("ttl_seconds", given, 0.0, above=True)
    target = await _target(service, payload, scope)
    if target.ids:
        service.engine.memory.pin(target.ids, min(seconds, MAX_PIN_S))
    return _done(target, f"to {MAX_PIN_S:g} seconds" if seconds > MAX_PIN_S else "")


async def _release(service: Service, payload: Mapping[str, Any], scope: str) -> Done:
    target = await _target(service, payload, scope)
    if target.ids:
        service.engine.memory.release(target.ids)
    return _done(target)


async def _prefetch(service: Service, payload: Mapping[str, Any], scope: str) -> Done:
    """Now, or to be there in so many ticks (``in``)."""
    wait = payload.get("in")
    ticks = 0.0 if wait is None else number("in", wait, 0.0, MAX_TIME)
    target = await _target(service, payload, scope)
    if not target.ids:
        return _done(target)
    if not ticks:
        for id in target.ids:
            service.engine.wake(id)
        return _done(target)
    times: dict[AgentId, float] = dict.fromkeys(target.ids, ticks)
    service.engine.expect(times)
    done = _done(target)
    if done.outcome == "accepted":
        return Done("deferred", "it is loaded when its time has come")
    return done


async def _demote(service: Service, payload: Mapping[str, Any], scope: str) -> Done:
    target = await _target(service, payload, scope)
    if target.ids:
        service.engine.memory.demote(target.ids)
    return _done(target)


async def _expect(service: Service, payload: Mapping[str, Any], scope: str) -> Done:
    """The next call, ``in`` ticks or ``at`` a time, with a ``confidence``."""
    sure = payload.get("confidence")
    confidence = 1.0 if sure is None else number("confidence", sure, 0.0, 1.0)
    wait, time = payload.get("in"), payload.get("at")
    if (wait is None) == (time is None):
        raise RequestError("payload gives no time, or two: in, a number of ticks, or at, a time")
    when = number("in", wait, 0.0, MAX_TIME) if time is None else number("at", time, 0.0, MAX_TIME)
    target = await _target(service, payload, scope)
    if target.ids:
        times: dict[AgentId, float] = dict.fromkeys(target.ids, when)
        service.engine.expect(times, confidence=confidence, absolute=time is not None)
    return _done(target)


ACTIONS: dict[str, Callable[[Service, Mapping[str, Any], str], Awaitable[Done]]] = {
    "kv.retain": _retain,
    "kv.release": _release,
    "kv.prefetch": _prefetch,
    "kv.demote": _demote,
    "sim.expect": _expect,
}
"""By ``action_type``. Others, ``kv.fetch`` among them, are of engines that share KV."""


def _id_of(field: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_ID_CHARS:
        refuse(field, value, f"must be a text of at most {_MAX_ID_CHARS} characters")
    return value


async def kv_hints(service: Service, request: HttpRequest) -> Response:
    """Answer ``POST /v1/kv_hints``: an envelope alone, while nobody of it calls."""
    body = await read_json(service, request)
    return JSONResponse(await execute(service, body, scope_of(request)))


ENDPOINTS = [Endpoint("/v1/kv_hints", ("POST",), kv_hints)]
