"""Listening: one socket, uvicorn's event loop, and an end that lets open calls finish."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from scalesim.server.config import ServerConfig
from scalesim.server.protocol import BoundedProtocol
from scalesim.server.service import Service

_BACKLOG = 4096
_KEEP_ALIVE_S = 75  # longer than clients keep idle connections: they close first, and nobody races


class Server(uvicorn.Server):
    """uvicorn's server for ``make_app``'s applications. SIGTERM or Ctrl-C: no new calls, those that
    are open have ``drain_timeout`` seconds to end; a second Ctrl-C ends them at once."""

    def __init__(self, app: Starlette, config: ServerConfig) -> None:
        self._service: Service = app.state.service
        self.signals: list[int] = []
        limits = config.limits
        protocol: Any = partial(BoundedProtocol, limits=limits)
        super().__init__(
            uvicorn.Config(
                app,
                host=config.host,
                port=config.port,
                http=protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, round(limits.drain_timeout)),
            )
        )

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, once it has started."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return host, port

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but the signal is not raised again: the server has done what it asks."""
        before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, self.handle_exit)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.signals.append(sig)
        self.stop(now=self.should_exit and sig == signal.SIGINT)

    def stop(self, *, now: bool = False) -> None:
        """Take no new calls, and stop when those that are open have ended, or ``now``."""
        self._service.life.state = "draining"
        self.should_exit = True
        self.force_exit |= now
