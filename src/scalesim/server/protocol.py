"""uvicorn's HTTP protocol with what it does not bound: slow senders, slow readers, long headers."""

from __future__ import annotations

import asyncio
import http
import json
import socket
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from scalesim.server.config import ServerLimits
from scalesim.server.errors import ApiError


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Headers must be complete within ``receive_timeout`` and stay within their
    limits; a reader that leaves ``max_send_bytes`` unread for ``send_timeout`` is dropped."""

    def __init__(self, *arguments: Any, limits: ServerLimits, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.access_log = False  # lines would hold query strings, whatever a client puts there
        self._limits = limits
        self._waits: asyncio.TimerHandle | None = None  # for headers
        self._stuck: asyncio.TimerHandle | None = None  # writing
        self._in_headers = True
        self._num_header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(self._limits.max_send_bytes)
        connection = transport.get_extra_info(
            "socket"
        )  # the system's buffer would grow to megabytes
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._limits.max_send_bytes)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._waits, self._stuck):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_headers:
            self._num_header_bytes += len(data)
        super().data_received(data)
        if self._in_headers and self._num_header_bytes > 2 * self._limits.max_header_bytes:
            limit = self._limits.max_header_bytes
            self._refuse(ApiError(431, f"headers of more than {limit} bytes"))

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, "the request is not HTTP/1.1"))

    # -- the parser's callbacks ---------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._in_headers:  # the next request on this connection
            self._expect_headers()

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._num_header_bytes = 0
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None
        super().on_headers_complete()

    # -- writing ------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stuck is None:
            self._stuck = self.loop.call_later(self._limits.send_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        super().resume_writing()

    # -- refusals before there is a request ---------------------------------------------------

    def _expect_headers(self) -> None:
        self._in_headers = True
        timeout = self._limits.receive_timeout
        error = ApiError(408, f"no complete headers within {timeout:g} seconds", code="too_slow")
        self._waits = self.loop.call_later(timeout, partial(self._refuse, error))

    def _refuse(self, error: ApiError) -> None:
        if self.transport.is_closing():
            return
        body = json.dumps(error.body()).encode()
        phrase = http.HTTPStatus(error.status).phrase
        head = (
            f"HTTP/1.1 {error.status} {phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
