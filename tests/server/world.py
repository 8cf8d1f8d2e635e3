"""A server on a loopback port, in a thread, on a tiny engine; and clients for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import openai

from scalesim.engine.engine import Engine
from scalesim.server.app import make_app
from scalesim.server.config import ServerConfig, ServerLimits
from scalesim.server.listen import Server
from scalesim.server.service import Service

KEY = "key-of-the-tests"
PATIENCE_S = 60.0  # a starved machine may stand still for seconds


@dataclass
class Running:
    """A server that runs: where, and what it is made of."""

    url: str
    port: int
    service: Service
    server: Server
    clients: list[openai.OpenAI] = field(default_factory=list)

    def client(self, **options: Any) -> openai.OpenAI:
        """A client, closed with the server."""
        made = openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": KEY, **options})
        self.clients.append(made)
        return made


@contextmanager
def serving(
    engine: Engine | Callable[[], Engine], *, limits: dict[str, Any] | None = None, **settings: Any
) -> Iterator[Running]:
    """A server of ``engine`` until the block ends."""
    config = ServerConfig(
        **{
            "port": 0,
            "names": ("tiny",),
            "api_keys": (KEY,),
            "limits": ServerLimits(**{"drain_timeout": 1.0, **(limits or {})}),
            **settings,
        }
    )
    app = make_app(engine, config)
    server = Server(app, config)
    started = threading.Event()
    server.on_listening = lambda url: started.set()
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(PATIENCE_S)
        port = int(server.url.rpartition(":")[2])
        running = Running(server.url, port, app.state.service, server)
        yield running
        for client in running.clients:
            client.close()
    finally:
        server.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
