"""The entry point ``vllm.endpoint_plugins``: routes of vLLM's API server for hints out of band.

    POST /scalesim/expect   {"in": {"ada": 3}, "at": {"bob": [17.5, 0.9]}}  who calls next, and when
    POST /scalesim/tick     {"n": 1} or {"to": 17}                          the simulation's clock
    POST /scalesim/forget   {"agents": ["ada"]}                             who calls no more
    GET  /scalesim/stats                                                    what was done so far

Bodies and replies are those of ``scalesim serve``, whose paths are known too, so that
``scalesim.client`` gives its hints to either. vLLM loads the routes only if ``VLLM_PLUGINS`` names
them, and asks for no key there.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from scalesim.checks import agent_ids, listed, number, refuse, shown
from scalesim.core import AgentId
from scalesim.distance.clock import MAX_TIME
from scalesim.errors import RequestError

MAX_BODY_BYTES = 16 << 20
OFF = (
    "the plug-in is not in use here: start vLLM with kv_connector ScaleSimConnector in "
    "--kv-transfer-config"
)


class HintRoutes:
    """vLLM's ``EndpointPlugin``."""

    name = "scalesim_http"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._core: Any = None

    def attach_router(self, app: Any) -> None:
        """Add the routes to ``app``."""
        for paths, method, answer in (
            (("/scalesim/expect", "/v1/agents/hints"), "POST", self.expect),
            (("/scalesim/tick", "/v1/sim/tick"), "POST", self.tick),
            (("/scalesim/forget", "/v1/agents/forget"), "POST", self.forget),
            (("/scalesim/stats",), "GET", self.stats),
        ):
            for path in paths:
                app.add_route(path, _route(answer), methods=[method])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Keep the way to the engine's core; vLLM calls this once it is there."""
        self._core = None if engine_client is None else engine_client.engine_core

    async def expect(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Who calls next. Raises ``RequestError``."""
        if body.keys().isdisjoint(("in", "at", "interrupt")):
            refuse("body", body, "must give a hint, as in {'in': {'bob': 3}}")
        confidence = number("confidence", body.get("confidence", 1.0), 0.0, 1.0)
        accepted = 0
        woken = listed("interrupt", body.get("interrupt", ()), "must be a list of agents")
        for field, absolute, given in (
            ("in", False, body.get("in", {})),
            ("at", True, body.get("at", {})),
            ("interrupt", False, dict.fromkeys(agent_ids("interrupt", woken), 0.0)),
        ):
            times, sure = _times(field, given, confidence)
            if times:
                accepted += await self._call("scalesim_expect", times, absolute, sure)
        return {"accepted": accepted}

    async def tick(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Move the clock. Raises ``RequestError``."""
        if body and ("n" in body) == ("to" in body):
            refuse("body", body, "must be {}, {'n': 1} or {'to': 17}")
        to = number("to", body["to"], 0.0, MAX_TIME) if "to" in body else None
        n = number("n", body.get("n", 1), 0.0, MAX_TIME, above=True)
        return {"tick": await self._call("scalesim_tick", n, to)}

    async def forget(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Who will not call again. Raises ``RequestError``."""
        agents = listed("agents", body.get("agents"), "must be a list of names")
        return {"forgotten": await self._call("scalesim_forget", agent_ids("agents", agents))}

    async def stats(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What was done so far."""
        return dict(await self._call("scalesim_stats"))

    async def _call(self, method: str, *args: Any) -> Any:
        found = None if self._core is None else await self._core.call_utility_async(method, *args)
        if found is None:
            raise RequestError(OFF)
        return found


def _times(
    field: str, given: object, confidence: float
) -> tuple[dict[AgentId, float], dict[AgentId, float]]:
    """Times by agent and how sure each is, of ``{"ada": 3, "bob": [12, 0.4]}``."""
    if not isinstance(given, Mapping):
        refuse(field, given, "must map agents to ticks, as in {'bob': 58}")
    times: dict[AgentId, float] = {}
    sure: dict[AgentId, float] = {}
    for agent, value in given.items():
        likely: object = confidence
        if isinstance(value, list) and len(value) == 2:
            value, likely = value
        times[agent] = number(f"{field} of {shown(agent)}", value, 0.0, MAX_TIME)
        sure[agent] = number(f"confidence of {shown(agent)}", likely, 0.0, 1.0)
    return times, sure


def _route(answer: Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]) -> Any:
    """``answer`` as a route of Starlette's: JSON in and out, 400 for what cannot be read."""
    from starlette.responses import JSONResponse

    async def respond(request: Any) -> Any:
        try:
            return JSONResponse(await answer(await _body(request)))
        except RequestError as error:
            told = {"message": str(error), "type": "invalid_request_error"}
            return JSONResponse({"error": told}, status_code=400)

    return respond


async def _body(request: Any) -> Mapping[str, Any]:
    if request.method == "GET":
        return {}
    raw = b""
    async for piece in request.stream():
        raw += piece
        if len(raw) > MAX_BODY_BYTES:
            raise RequestError(f"a body of more than {MAX_BODY_BYTES} bytes; send it in parts")
    try:
        body = json.loads(raw or b"{}")
    except ValueError as error:
        raise RequestError(f"the body is no JSON: {error}") from None
    if not isinstance(body, dict):
        refuse("body", body, "must be an object")
    return body
