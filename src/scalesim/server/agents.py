"""``/v1/agents``: who there is, where an agent's state lies and why it was missing, and what may be
asked for an agent: a pin for a time, a fork, to be forgotten."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from scalesim.checks import number, shown
from scalesim.engine.memory_view import MAX_PIN_S
from scalesim.errors import UnknownAgentError
from scalesim.server.body import read_json
from scalesim.server.endpoint import Endpoint
from scalesim.server.errors import ApiError, bad
from scalesim.server.hints import scope_of
from scalesim.server.identity import agent_name, scoped
from scalesim.server.looks import place_of
from scalesim.server.service import Service

MAX_LISTED = 1000
MAX_FORGOTTEN = 100_000


def agent_of(service: Service, request: HttpRequest) -> tuple[str, str]:
    """The engine's id of the agent in the path, and its name. Raises 404."""
    name = agent_name("agent", request.path_params["name"])
    return scoped(name, scope_of(request)), name


def unknown(name: str) -> ApiError:
    """The error for an agent that nobody knows."""
    return ApiError(
        404,
        f"agent {shown(name)} is unknown here: it has not called, nor was it spoken of",
        param="agent",
        code="agent_not_found",
    )


async def one_agent(service: Service, request: HttpRequest) -> Response:
    """Answer ``GET /v1/agents/{name}``."""
    id, name = agent_of(service, request)
    engine = service.engine
    try:
        view = await engine.memory.view_async(id)
        miss = engine.why(id)
    except UnknownAgentError:
        raise unknown(name) from None
    now, next_use = engine.clock.now, view.pages.next_use
    told: dict[str, Any] = {
        "agent": name,
        "place": place_of(view),
        "pages": {
            "device": view.pages.device,
            "host": view.pages.host,
            "disk": view.pages.disk,
            "loading": view.pages.coming,
            "bytes": engine.memory.page_bytes,
        },
        "open_calls": view.open_calls,
        "tick": now,
        "next_use": next_use,
        "next_call_in": None if next_use is None else max(0.0, next_use - now),
        "pinned_seconds": round(view.pinned_s, 3),
        "adapter": engine.agent(id).adapter,
        "last_miss": None,
    }
    if miss is not None:
        told["last_miss"] = {
            "cause": miss.cause,
            "tick": miss.tick,
            "token": miss.token,
            "expected": miss.expected,
            "load_tokens": miss.load_tokens,
            "lost_tokens": miss.lost_tokens,
            "waits": dict(miss.waits),
            "text": str(miss),
        }
    return JSONResponse(told)


async def pin(service: Service, request: HttpRequest) -> Response:
    """Answer ``POST /v1/agents/{name}/pin``: for ``seconds``, which must be given."""
    id, name = agent_of(service, request)
    body = await read_json(service, request)
    if (seconds := body.get("seconds")) is None:
        raise bad(f"seconds is missing: a pin ends, after {MAX_PIN_S:g} at the latest", "seconds")
    seconds = number("seconds", seconds, 0.0, MAX_PIN_S, above=True)
    try:
        service.engine.memory.pin(id, seconds)
    except UnknownAgentError:
        raise unknown(name) from None
    return JSONResponse({"agent": name, "pinned_seconds": seconds})


async def release(service: Service, request: HttpRequest) -> Response:
    """Answer ``POST /v1/agents/{name}/release``: no pin, and no demotion, from now on."""
    id, name = agent_of(service, request)
    try:
        service.engine.memory.release(id)
    except UnknownAgentError:
        raise unknown(name) from None
    return JSONResponse({"agent": name, "pinned_seconds": 0.0})


async def fork(service: Service, request: HttpRequest) -> Response:
    """Answer ``POST /v1/agents/{name}/fork``: a ``child`` that owns what the agent owns."""
    id, name = agent_of(service, request)
    body = await read_json(service, request)
    child = agent_name("child", body.get("child"))
    child_id = scoped(child, scope_of(request))
    there, _ = service.identity.let_in([child_id])
    if not there:
        raise ApiError(429, "there are as many agents as the server keeps", code="too_many_agents")
    try:
        service.engine.fork(id, child_id)
    except UnknownAgentError:
        raise unknown(name) from None
    return JSONResponse({"agent": child, "parent": name})


async def forget(service: Service, request: HttpRequest) -> Response:
    """Answer ``DELETE /v1/agents/{name}``."""
    id, name = agent_of(service, request)
    try:
        service.engine.forget(id, wait=False)
    except UnknownAgentError:
        raise unknown(name) from None
    service.identity.drop([id])
    return JSONResponse({"agent": name, "forgotten": True})


async def forget_many(service: Service, request: HttpRequest) -> Response:
    """Answer ``POST /v1/agents/forget``: all of ``agents`` that there are."""
    body = await read_json(service, request)
    given, scope = body.get("agents"), scope_of(request)
    if not isinstance(given, list) or len(given) > MAX_FORGOTTEN:
        raise bad(
            f"agents={shown(given)} must be a list of at most {MAX_FORGOTTEN} agents", "agents"
        )
    ids = list(dict.fromkeys(scoped(agent_name("agents", name), scope) for name in given))
    gone = []
    for id in ids:
        try:
            service.engine.forget(id, wait=False)
        except UnknownAgentError:
            continue
        gone.append(id)
    service.identity.drop(gone)
    return JSONResponse({"forgotten": len(gone), "missing": len(ids) - len(gone)})


async def all_agents(service: Service, request: HttpRequest) -> Response:
    """Answer ``GET /v1/agents``: at most ``limit`` whose name has ``q`` in it, the soonest first,
    as of the newest look (``looks``)."""
    wanted = request.query_params.get("q", "")
    limit = request.query_params.get("limit", "100")
    if not limit.isdecimal() or not 1 <= int(limit[:9]) <= MAX_LISTED:
        raise bad(f"limit={shown(limit)} must be a whole number from 1 to {MAX_LISTED}", "limit")
    look = await service.looks.newest(service.engine)
    ranked = await service.off_loop(1 << 20, partial(look.ranked, scope_of(request)))
    found = [row for row in ranked.named if wanted in row[0]]
    listed = [
        {
            "agent": name,
            "place": place_of(view),
            "pages": view.pages.total,
            "next_use": view.pages.next_use,
            "open_calls": view.open_calls,
            "pinned_seconds": round(view.pinned_s, 3),
        }
        for name, view in found[: int(limit)]
    ]
    return JSONResponse({"tick": look.census.tick, "count": len(found), "agents": listed})


ENDPOINTS = [
    Endpoint("/v1/agents", ("GET",), all_agents),
    Endpoint("/v1/agents/forget", ("POST",), forget_many),
    Endpoint("/v1/agents/{name:path}/pin", ("POST",), pin),
    Endpoint("/v1/agents/{name:path}/release", ("POST",), release),
    Endpoint("/v1/agents/{name:path}/fork", ("POST",), fork),
    Endpoint("/v1/agents/{name:path}", ("GET",), one_agent),
    Endpoint("/v1/agents/{name:path}", ("DELETE",), forget),
]
