"""Server-sent events, as OpenAI's clients read them: ``data:`` lines, and ``[DONE]`` at the end.

A stream that fails says so in a last event and closes; it never just stops. Comments, which clients
skip, keep a stream alive that waits in the queue.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from scalesim.server.errors import ApiError, api_error
from scalesim.server.leaving import ClientGoneError, while_connected

DONE = b"data: [DONE]\n\n"
_COMMENT = b": waiting\n\n"
_STOPPED = ApiError(503, "the server stopped before this call had ended", code="draining")
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def event(value: Mapping[str, Any]) -> bytes:
    """``value`` as one event."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """Sends ``events``, bytes that are whole events, as they come. If nothing comes for
    ``keep_alive`` seconds, a comment is sent. ``events`` is closed when the client goes away."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[bytes], keep_alive: float, headers: Mapping[str, str]
    ) -> None:
        super().__init__(None, 200, {**_HEADERS, **headers})
        del self.headers["content-length"]
        self._events, self._keep_alive = events, keep_alive
        self._is_quiet = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        comments = asyncio.create_task(self._comments(send))
        try:
            async with while_connected(receive):
                last = await self._send_all(send)
        except asyncio.CancelledError:  # the server stops, and this call has not ended in time
            await self._end(send, event(_STOPPED.body()))
            raise
        finally:
            comments.cancel()
            await self._events.aclose()  # type: ignore[attr-defined]  # a generator
        await self._end(send, last)

    async def _end(self, send: Send, last: bytes) -> None:
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _send_all(self, send: Send) -> bytes:
        """The last event, after all the others."""
        try:
            async for chunk in self._events:
                self._is_quiet = False
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except (asyncio.CancelledError, ClientGoneError):
            raise
        except Exception as error:
            return event(api_error(error).body())
        return DONE

    async def _comments(self, send: Send) -> None:
        while True:
            self._is_quiet = True
            await asyncio.sleep(self._keep_alive)
            if self._is_quiet:
                await send({"type": "http.response.body", "body": _COMMENT, "more_body": True})
