"""Bodies: read within limits, parsed strictly, and checked against a schema."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import anyio
import jiter
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from scalesim.checks import shown
from scalesim.server.collector import paused_collector
from scalesim.server.config import ServerLimits
from scalesim.server.errors import ApiError, bad
from scalesim.server.gate import admission_of
from scalesim.server.leaving import ClientGoneError, while_connected
from scalesim.server.service import SMALL, Service
from scalesim.strict_json import MAX_DEPTH, is_flat

BodyT = TypeVar("BodyT", bound=BaseModel)

_CLOSE = {"connection": "close"}
_SIZE = "scalesim.body_bytes"


class BadJsonError(ApiError):
    """The body is no JSON that can be read in one way only."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message, code="invalid_json")


async def read_json(service: Service, request: Request) -> dict[str, Any]:
    """The object that the body holds, once the model is loaded. Raises 400, 408, 413 or 503."""
    raw = await _read(service, request)
    value = await service.off_loop(len(raw), partial(parsed, raw, service.limits))
    if service.life.state == "starting":
        async with while_connected(request.receive):
            await service.started()
    if not isinstance(value, dict):
        raise BadJsonError(f"the body is a {type(value).__name__}; it must be a JSON object")
    return value


def parsed(raw: bytes, limits: ServerLimits) -> Any:
    """The value of ``raw``, in which nothing can be read in two ways. Raises ``BadJsonError`` for
    what is no JSON in UTF-8, has a key twice, a NaN or half a surrogate pair, or is nested
    deeper than ``MAX_DEPTH``; and 400 for too many objects, lists and keys."""
    parts = sum(map(raw.count, (b"{", b"[", b":")))
    if parts > limits.max_body_parts:
        limit = limits.max_body_parts
        message = f"the body has {parts} braces, brackets and colons; at most {limit}"
        raise BadJsonError(message)
    try:
        with paused_collector() if len(raw) > SMALL else nullcontext():
            value = jiter.from_json(
                raw, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="none"
            )
    except ValueError as cause:
        if "recursion limit" in str(cause):
            raise _too_deep() from None
        raise BadJsonError(f"the body is not JSON: {cause!s:.200}") from None
    if parts > MAX_DEPTH and not is_flat(value):
        raise _too_deep()
    return value


async def read(
    service: Service, request: Request, schema: type[BodyT]
) -> tuple[BodyT, dict[str, Any]]:
    """The body as ``schema`` has it, and all that stands in the body. Raises 400, 408 or 413."""
    value = await read_json(service, request)
    return await service.off_loop(body_bytes(request), partial(validated, schema, value)), value


def validated(schema: type[BodyT], value: Mapping[str, Any]) -> BodyT:
    """``value`` as ``schema``. Raises 400 for the first field that breaks its rule."""
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise _first(error) from None


def body_bytes(request: Request) -> int:
    """How large the body was."""
    return int(request.scope.get(_SIZE, 0))


def give_back(service: Service, request: Request) -> None:
    """The request is answered: its body counts no more."""
    service.open.remove(body_bytes(request), admission_of(request).tenant)
    request.scope[_SIZE] = 0


async def _read(service: Service, request: Request) -> bytes:
    limits, headers = service.limits, request.headers
    tenant = admission_of(request).tenant
    _check_headers(headers)
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 20:
        raise ApiError(400, "Content-Length must be a whole number", headers=_CLOSE)
    if int(length) > limits.max_body_bytes:
        raise _too_large(limits)
    chunks: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(limits.receive_timeout):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limits.max_body_bytes:
                    raise _too_large(limits)
                service.open.add(len(chunk), tenant)
                request.scope[_SIZE] = size
                chunks.append(chunk)
    except TimeoutError:
        raise ApiError(
            408,
            f"the body did not arrive within {limits.receive_timeout:g} seconds",
            code="too_slow",
            headers=_CLOSE,
        ) from None
    except ClientDisconnect:
        raise ClientGoneError from None
    return b"".join(chunks)


def _too_deep() -> BadJsonError:
    return BadJsonError(f"the body is nested deeper than {MAX_DEPTH}")


def _too_large(limits: ServerLimits) -> ApiError:
    message = f"the body is larger than {limits.max_body_bytes} bytes"
    return ApiError(413, message, code="body_too_large", headers=_CLOSE)


def _check_headers(headers: Mapping[str, str]) -> None:
    kind = headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":  # also keeps out what a foreign page can send unasked
        raise bad(
            f"Content-Type is {shown(kind)}; it must be application/json", code="invalid_json"
        )
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(
            400, "a body with a Content-Encoding is not read; send plain JSON", headers=_CLOSE
        )


def _first(error: ValidationError) -> ApiError:
    """The first thing that is wrong, in the form that ``scalesim.checks`` gives to its errors."""
    found = error.errors(include_url=False, include_context=False)[0]
    place = _place(found["loc"])
    if found["type"] == "missing":
        return bad(f"{place} is missing", place)
    rule = found["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return bad(f"{place}={shown(found['input'])} {rule[:1].lower()}{rule[1:]}", place)


def _place(path: tuple[int | str, ...]) -> str:
    """``("logit_bias", 0, "id")`` as ``logit_bias[0].id``."""
    place = ""
    for part in path:
        place += f"[{part}]" if isinstance(part, int) else f"{'.' * bool(place)}{part}"
    return place[:200] or "the body"
