"""The proxy as an ASGI app: each request goes on to the upstream server unchanged, each answer
comes back as it is sent, and calls are noted on the way.

Keys pass through and are neither kept nor shown. Nothing is retried: the program sees what the
server says.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import httpx2
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from scalesim.errors import RequestError
from scalesim.proxy.answer import AnswerReader
from scalesim.proxy.recording import Recording
from scalesim.server.identity import ANONYMOUS, Caller, Identity

MAX_BODY_BYTES = 64 << 20
_RECORDED = ("chat/completions", "completions")
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
_OK, _GONE, _UNREACHABLE, _TOO_LARGE = 200, 499, 502, 413
# those of one connection only (RFC 9110, 7.6.1), and what is said anew of a decoded body
_NOT_FORWARDED = frozenset(
    (
        "accept-encoding", "connection", "content-encoding", "content-length", "host",
        "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
        "transfer-encoding", "upgrade",
    )
)  # fmt: skip


def make_proxy(upstream: str, recording: Recording, client: httpx2.AsyncClient) -> Starlette:
    """The app for ``upstream``, a URL that ends in the server's version, as in
    ``http://localhost:8000/v1``. It answers below ``/v1`` and ``/agents/{agent}/v1``. ``client`` is
    closed when the app ends."""
    proxy = _Proxy(upstream.rstrip("/"), recording, client)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/v1/{path:path}", proxy.forward, methods=_METHODS),
            Route("/agents/{agent}/v1/{path:path}", proxy.forward, methods=_METHODS),
        ],
    )


class _Call:
    """A call under way: it ends once, however its answer ends."""

    def __init__(
        self, recording: Recording, body: Mapping[str, Any], caller: Caller | None
    ) -> None:
        self._recording = recording
        agent, rung = (None, ANONYMOUS) if caller is None else (caller.agent, caller.rung)
        self._id, self.record = recording.begins(body, agent, rung)
        self._reader = AnswerReader()
        self._answered: int | None = None

    def answers(self, answer: httpx2.Response) -> None:
        """The answer's head has come."""
        self._answered = answer.status_code
        kind = answer.headers.get("content-type", "")
        self._reader = AnswerReader(is_stream=kind.startswith("text/event-stream"))

    def feed(self, data: bytes) -> None:
        self._reader.feed(data)
        if self.record.first_s is None and self._reader.has_output:
            self.record.first_s = self._recording.now_s

    def close(self, status: int) -> None:
        """The call has ended. A program that went away may have read all of the answer before."""
        record = self.record
        if record.end_s is not None:
            return
        said = self._reader.finish()
        if self._answered is not None and (self._answered != _OK or self._reader.is_whole):
            status = self._answered
        record.status = status
        self._recording.ends(self._id, record, said)


class _Proxy:
    def __init__(self, upstream: str, recording: Recording, client: httpx2.AsyncClient) -> None:
        self._upstream, self._recording, self._client = upstream, recording, client
        self._identity = Identity()

    async def forward(self, request: Request) -> Response:
        path = request.path_params["path"]
        body = await _body_of(request)
        if body is None:
            return _error(_TOO_LARGE, f"the body is longer than {MAX_BODY_BYTES} bytes")
        async with AsyncExitStack() as stack:
            call = self._begin(request, path, body, stack)
            try:
                answer = await self._client.send(
                    self._client.build_request(
                        request.method,
                        f"{self._upstream}/{path}",
                        params=request.query_params.multi_items() or None,
                        headers=_headers(request.headers) | {"accept-encoding": "identity"},
                        content=body or None,
                    ),
                    stream=True,
                )
            except httpx2.HTTPError as error:
                if call is not None:
                    call.close(_UNREACHABLE)
                told = f"{self._upstream} cannot be reached: {type(error).__name__} {error}"
                return _error(_UNREACHABLE, told.rstrip())
            stack.push_async_callback(answer.aclose)
            held = stack.pop_all()  # until the answer's last byte has gone
        return StreamingResponse(
            _passed_on(answer, call, held), answer.status_code, _headers(answer.headers)
        )

    def _begin(
        self, request: Request, path: str, body: bytes, stack: AsyncExitStack
    ) -> _Call | None:
        """The call to note; ``None`` for a request that is none."""
        said = _object(body)
        if request.method != "POST" or said is None:
            return None
        if isinstance(said.get("sim_tick"), (int, float)):
            self._recording.ticks_to(float(said["sim_tick"]))
        if path.strip("/") not in _RECORDED:
            return None
        caller = None
        with suppress(RequestError):  # a name that is none: the server may say so, not we
            caller = self._identity.who_calls(
                said, request.headers, request.path_params.get("agent")
            )
            stack.enter_context(caller)
        call = _Call(self._recording, said, caller)
        stack.callback(call.close, _GONE)
        return call


async def _passed_on(
    answer: httpx2.Response, call: _Call | None, held: AsyncExitStack
) -> AsyncIterator[bytes]:
    async with held:
        if call is not None:
            call.answers(answer)
        async for data in answer.aiter_bytes():
            if call is not None:
                call.feed(data)
            yield data
        if call is not None:
            call.close(answer.status_code)


async def _body_of(request: Request) -> bytes | None:
    """The whole body; ``None`` if it is too long."""
    body = bytearray()
    with suppress(ClientDisconnect):
        async for data in request.stream():
            body += data
            if len(body) > MAX_BODY_BYTES:
                return None
    return bytes(body)


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _headers(given: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in given.items() if name.lower() not in _NOT_FORWARDED}


def _error(status: int, message: str) -> JSONResponse:
    """An error of the proxy's own, as OpenAI's clients read it."""
    body = {
        "message": f"scalesim run: {message}",
        "type": "proxy_error",
        "param": None,
        "code": None,
    }
    return JSONResponse({"error": body}, status)
