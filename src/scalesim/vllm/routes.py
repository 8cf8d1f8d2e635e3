"""The entry point ``vllm.endpoint_plugins``: routes of vLLM's API server for hints out of band.

    POST /scalesim/expect   {"in": {"ada": 3}, "at": {"bob": 17.5}}   who calls next, and when
    POST /scalesim/tick     {"n": 1} or {"to": 17}                    the clock of the simulation
    POST /scalesim/forget   {"agents": ["ada"]}                       who will not call again
    GET  /scalesim/stats                                              what the plug-in counts

The bodies are those of ``/v1/agents/hints`` and ``/v1/sim/tick`` of ``scalesim serve``. All give
the counts. vLLM loads the routes only if ``VLLM_PLUGINS`` names them, and does not guard them.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from scalesim.checks import agent_ids, number, refuse
from scalesim.distance.clock import MAX_TIME
from scalesim.errors import RequestError
from scalesim.order.request_hints import read_times

CoreCall: TypeAlias = Callable[..., Awaitable[dict[str, float]]]
MAX_BODY_BYTES = 16 << 20


class HintRoutes:
    """vLLM's ``EndpointPlugin``."""

    name = "scalesim_http"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._core: Any = None

    def attach_router(self, app: Any) -> None:
        """Add the routes to ``app``."""
        for path, method, answer in (
            ("/scalesim/expect", "POST", self.expect),
            ("/scalesim/tick", "POST", self.tick),
            ("/scalesim/forget", "POST", self.forget),
            ("/scalesim/stats", "GET", self.stats),
        ):
            app.add_route(path, _route(answer), methods=[method])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Keep the way to the engine's core; vLLM calls this once it is there."""
        self._core = None if engine_client is None else engine_client.engine_core

    async def expect(self, body: dict[str, Any]) -> dict[str, float]:
        """Who calls next. Raises ``RequestError``."""
        counts: dict[str, float] = {}
        for field, absolute in (("in", False), ("at", True)):
            times = read_times(field, body.get(field, {}))
            if times:
                counts = await self._call("scalesim_expect", times, absolute)
        return counts or await self.stats({})

    async def tick(self, body: dict[str, Any]) -> dict[str, float]:
        """Move the clock. Raises ``RequestError``."""
        to = body.get("to")
        if to is not None:
            to = number("to", to, 0.0, MAX_TIME)
        n = number("n", body.get("n", 1), 0.0, MAX_TIME, above=True)
        return await self._call("scalesim_tick", n, to)

    async def forget(self, body: dict[str, Any]) -> dict[str, float]:
        """Who will not call again. Raises ``RequestError``."""
        agents = body.get("agents", [])
        if isinstance(agents, str):
            refuse("agents", agents, "must be a list of names")
        return await self._call("scalesim_forget", agent_ids("agents", agents))

    async def stats(self, body: dict[str, Any]) -> dict[str, float]:
        """The counts."""
        return await self._call("scalesim_stats")

    async def _call(self, method: str, *args: Any) -> dict[str, float]:
        if self._core is None:
            raise RequestError("this server has no engine; give hints to the one that generates")
        counts: dict[str, float] = await self._core.call_utility_async(method, *args)
        return counts


def _route(answer: Callable[[dict[str, Any]], Awaitable[dict[str, float]]]) -> Any:
    """``answer`` as a route of Starlette's: JSON in and out, 400 for what cannot be read."""
    from starlette.responses import JSONResponse

    async def respond(request: Any) -> Any:
        try:
            return JSONResponse(await answer(await _body(request)))
        except RequestError as error:
            told = {"message": str(error), "type": "invalid_request_error"}
            return JSONResponse({"error": told}, status_code=400)

    return respond


async def _body(request: Any) -> dict[str, Any]:
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
