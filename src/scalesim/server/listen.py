"""Listening: one socket, uvicorn's event loop, and an end that lets open calls finish."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from scalesim.errors import ConfigError
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
        self._service.on_failure = self.stop
        self.on_listening: Callable[[str], object] = lambda url: None
        self.signals: list[int] = []
        self._address = config.host, config.port
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
    def error(self) -> BaseException | None:
        """Why the engine did not start."""
        return self._service.error

    @property
    def url(self) -> str:
        """Where it listens, once it has started."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where. Raises ``ConfigError`` for an address that cannot be had, before
        anything is loaded."""
        await super().startup([bound_socket(self._address)])
        self.on_listening(self.url)

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
        self._service.drain()
        self.should_exit = True
        self.force_exit |= now


def bound_socket(address: tuple[str, int]) -> socket.socket:
    """The one socket that the server listens on. Raises ``ConfigError``."""
    host, port = address[0].strip("[]"), address[1]
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # Named TCP, or asyncio leaves Nagle's delay on, and a reply in two parts takes 40 ms more.
        found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, port))
        except OSError:
            found.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"host={host!r:.80} and port={port}: {reason}; give another host or port"
        ) from None
    return found
