"""``/v1/models``, ``/version``, ``/health`` and ``/ready``: what is served, and whether it can."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from scalesim._version import __version__
from scalesim.server.endpoint import Endpoint, for_agents
from scalesim.server.generation import known_model
from scalesim.server.service import Service


async def models(service: Service, request: HttpRequest) -> Response:
    """Answer ``GET /v1/models``: the model under all its names, and the adapters."""
    names = [*service.config.names, *(adapter.name for adapter in service.engine.adapters.list())]
    return JSONResponse({"object": "list", "data": [_model(service, name) for name in names]})


async def model(service: Service, request: HttpRequest) -> Response:
    """Answer ``GET /v1/models/{name}``."""
    name, _, _ = known_model(service, request.path_params["name"])
    return JSONResponse(_model(service, name))


async def health(service: Service, request: HttpRequest) -> Response:
    """Answer ``GET /health``: the state in one word, to anybody; 503 unless all is well."""
    state = service.health()
    return JSONResponse({"status": state}, 200 if state == "ready" else 503)


async def ready(service: Service, request: HttpRequest) -> Response:
    """Answer ``GET /ready``: 200 while calls are taken."""
    service.life.check()
    return JSONResponse({"status": "ready", "open_requests": service.open.count})


async def version(service: Service, request: HttpRequest) -> Response:
    """Answer ``GET /version``."""
    return JSONResponse({"version": __version__})


def _model(service: Service, name: str) -> dict[str, Any]:
    base = service.config.names[0]
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "scalesim",
        "root": name,
        "parent": None if name in service.config.names else base,
        "max_model_len": service.engine.model.max_len,
    }


ENDPOINTS = [
    *for_agents(
        Endpoint("/v1/models", ("GET",), models),
        Endpoint("/v1/models/{name:path}", ("GET",), model),
    ),
    Endpoint("/health", ("GET",), health, "open"),
    Endpoint("/ready", ("GET",), ready),
    Endpoint("/version", ("GET",), version),
]
