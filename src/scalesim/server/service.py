"""The service: what all handlers share."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import anyio

from scalesim.engine.engine import Engine
from scalesim.errors import UnknownAgentError
from scalesim.server.config import ServerConfig
from scalesim.server.errors import ApiError
from scalesim.server.identity import Identity
from scalesim.server.life import Life
from scalesim.server.looks import Looks
from scalesim.server.metrics import Metrics
from scalesim.server.queue import OpenRequests

T = TypeVar("T")

NUM_THREADS = 4
SMALL = 4096
"""Bytes of a body that is parsed and rendered on the event loop: less than a hop to a thread."""
log = logging.getLogger("scalesim.server")


class Service:
    """An engine, the server's settings, and what is open. An engine that a function makes is made
    on a thread by ``start``, and closed by ``close``; one that is given stays its owner's."""

    def __init__(self, engine: Engine | Callable[[], Engine], config: ServerConfig) -> None:
        self.config, self.limits, self.life = config, config.limits, Life()
        self.open = OpenRequests(config.limits, len(config.api_keys) + len(config.admin_keys))
        self.identity = Identity(self._forget)
        self.metrics = Metrics(self.open, self.identity)
        self.looks = Looks()
        self.created = int(time.time())
        self._threads = ThreadPoolExecutor(NUM_THREADS, "scalesim-server")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._make = engine if callable(engine) else None
        self._engine = None if callable(engine) else engine
        self.error: BaseException | None = None
        self.on_failure: Callable[[], object] = lambda: None
        self._started = asyncio.Event()
        if self._make is None:
            self.life.state = "ready"

    @property
    def engine(self) -> Engine:
        """The engine. Raises 503 before it is there."""
        if self._engine is None:
            self.life.check()
            raise ApiError(503, "the model is still loading; try again soon", code="starting")
        return self._engine

    @property
    def engine_if_ready(self) -> Engine | None:
        """The engine, if it is there."""
        return self._engine

    async def start(self) -> None:
        """Make the engine; requests are answered from now on. What went wrong is ``error``, and
        ``on_failure`` is called."""
        if self._make is None:
            return
        self._loop = asyncio.get_running_loop()
        try:
            self._engine = await self._loop.run_in_executor(self._threads, self._make)
        except Exception as error:
            self.error, self.life.state = error, "failed"
            self.on_failure()
            return
        finally:
            self._started.set()
        if self.life.state == "starting":
            self.life.state = "ready"

    async def started(self) -> None:
        """Wait until the model is loaded, ``start_timeout`` at most. Raises 503."""
        with suppress(TimeoutError):
            with anyio.fail_after(self.limits.start_timeout):
                await self._started.wait()
        self.life.check()

    def drain(self) -> None:
        """Take no new calls, and let those go that wait for the model. From any thread."""
        self.life.state = "draining"
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._started.set)

    async def close(self) -> None:
        """No more requests; the engine ends what is open."""
        self.life.state = "draining"
        if self._make is not None and self._engine is not None:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._engine.close)
        self._threads.shutdown(wait=False)

    async def off_loop(self, size: int, work: Callable[[], T]) -> T:
        """What ``work`` returns, which takes the longer the larger ``size`` is: on a thread, unless
        it is small."""
        if size <= SMALL:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _forget(self, agents: list[str]) -> None:
        for agent in agents:
            with suppress(UnknownAgentError):  # it never came as far as the engine
                self.engine.forget(agent, wait=False)

    def health(self) -> str:
        """The server's state in one word."""
        steps = 0 if self._engine is None else self._engine.stats.steps
        return self.life.health(steps, self.open.count)
