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


def make_proxy(
    upstream: str, recording: Recording, client: httpx2.AsyncClient, model: str | None = None
) -> Starlette:
    """The app for ``upstream``, a URL that ends in the server's version, as in
    ``http://localhost:8000/v1``. It answers below ``/v1`` and ``/agents/{agent}/v1``. ``client`` is
    closed when the app ends. ``model``: the one model of a server that is there for this program;
    whatever name the program has for its model is replaced."""
    proxy = _Proxy(upstream.rstrip("/"), recording, client, model)

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
    def __init__(
        self,
        upstream: str,
        recording: Recording,
        client: httpx2.AsyncClient,
        model: str | None,
    ) -> None:
        self._upstream, self._recording, self._client = upstream, recording, client
        self._model = model
        self._identity = Identity()

    async def forward(self, request: Request) -> Response:
        path = request.path_params["path"].strip("/")
        body = await _body_of(request)
        if body is None:
            return _error(_TOO_LARGE, f"the body is longer than {MAX_BODY_BYTES} bytes")
        said = _object(body) if request.method == "POST" else None
        if said is not None and self._model is not None and "model" in said:
            body = json.dumps(said | {"model": self._model}).encode()
        async with AsyncExitStack() as stack:
            call = None if said is None else self._begin(request, path, said, stack)
            try:
                answer = await self._client.send(
                    self._client.build_request(
                        request.method,
                        f"{self._upstream}/{path}",
                        params=str(request.query_params) or None,
                        headers=_headers(request.headers) | _said_of(request),
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
        self, request: Request, path: str, said: dict[str, Any], stack: AsyncExitStack
    ) -> _Call | None:
        """The call to note; ``None`` for a request that is none."""
        self._recording.ticks_to(said.get("sim_tick"))
        if path == "sim/tick":
            self._recording.ticks_to(said.get("to"), said.get("n"))
        if path not in _RECORDED:
            return None
        caller, alias = None, None
        if self._model is not None and isinstance(said.get("model"), str):
            alias = said["model"].partition("@")[2] or None
        with suppress(RequestError):  # a name that is none: the server may say so, not we
            caller = self._identity.who_calls(
                said, request.headers, request.path_params.get("agent"), alias
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
        try:
            async for data in answer.aiter_bytes():
                if call is not None:
                    call.feed(data)
                yield data
        except httpx2.HTTPError:
            if call is not None:
                call.close(_UNREACHABLE)
            raise  # the program's connection breaks off, as it would have without the proxy
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


def _said_of(request: Request) -> dict[str, str]:
    """Headers of the proxy's own: the agent of the base URL, for servers that take it."""
    found = {"accept-encoding": "identity"}
    if (agent := request.path_params.get("agent")) is not None:
        found["x-scalesim-agent"] = agent
    return found


def _error(status: int, message: str) -> JSONResponse:
    """An error of the proxy's own, as OpenAI's clients read it."""
    body = {
        "message": f"scalesim run: {message}",
        "type": "proxy_error",
        "param": None,
        "code": None,
    }
    return JSONResponse({"error": body}, status)
