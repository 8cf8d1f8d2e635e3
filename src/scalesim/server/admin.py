"""``/v1/admin``: adapters added and removed while the server runs, by those who have an admin key.

An adapter is added by its registered name only: the operator names the folders when the server
starts (``ServerConfig.adapters``), and no path ever comes over HTTP.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from scalesim.checks import shown
from scalesim.errors import AdapterError
from scalesim.requests.adapter import AdapterInfo
from scalesim.server.body import read_json
from scalesim.server.endpoint import Endpoint
from scalesim.server.errors import ApiError
from scalesim.server.service import Service

_SLOW = 1 << 20


async def _named(service: Service, request: HttpRequest) -> str:
    """The registered name in the body. Raises 404 for any other."""
    body = await read_json(service, request)
    name = body.get("name")
    if not isinstance(name, str) or name not in service.config.adapters:
        known = ", ".join(map(shown, sorted(service.config.adapters)[:8])) or "none"
        raise ApiError(
            404,
            f"adapter {shown(name)} is not registered with this server; there are: {known}",
            param="name",
            code="adapter_not_registered",
        )
    return name


async def adapters(service: Service, request: HttpRequest) -> Response:
    """Answer ``GET /v1/admin/adapters``: those registered, and those that are there."""
    there = [_told(info) for info in service.engine.adapters.list()]
    return JSONResponse({"registered": sorted(service.config.adapters), "adapters": there})


async def add(service: Service, request: HttpRequest) -> Response:
    """Answer ``POST /v1/admin/adapters/add``: read the folder of ``name``."""
    name = await _named(service, request)
    path = service.config.adapters[name]
    try:
        await service.off_loop(_SLOW, partial(service.engine.adapters.add, name, path))
    except AdapterError as error:
        message = str(error).replace(str(path), name)
        raise ApiError(409, message, param="name", code="adapter_unusable") from error
    return JSONResponse({"name": name, "added": True})


async def remove(service: Service, request: HttpRequest) -> Response:
    """Answer ``POST /v1/admin/adapters/remove``: forget ``name``, unless open calls use it."""
    name = await _named(service, request)
    try:
        service.engine.adapters.remove(name)
    except AdapterError as error:
        raise ApiError(409, str(error), param="name", code="adapter_in_use") from error
    return JSONResponse({"name": name, "removed": True})


def _told(info: AdapterInfo) -> dict[str, Any]:
    """Without the folder's path."""
    return {
        "name": info.name,
        "pages": info.num_pages,
        "digest": info.digest,
        "open_calls": info.open_calls,
    }


ENDPOINTS = [
    Endpoint("/v1/admin/adapters", ("GET",), adapters, "admin"),
    Endpoint("/v1/admin/adapters/add", ("POST",), add, "admin"),
    Endpoint("/v1/admin/adapters/remove", ("POST",), remove, "admin"),
]
