"""Clients that go away: whoever stops waiting has its calls cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Receive


class ClientGoneError(Exception):
    """Nobody reads the reply any more."""


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """What stands in the block is cancelled when the client closes the connection, and
    ``ClientGoneError`` is raised. The body must have been read."""
    task = asyncio.current_task()
    assert task is not None
    is_gone, is_over = False, False

    def leave(watch: asyncio.Task[None]) -> None:
        nonlocal is_gone
        if not (is_over or watch.cancelled()):
            is_gone = True
            task.cancel()

    watch = asyncio.create_task(_disconnected(receive))
    watch.add_done_callback(leave)
    try:
        yield
    except asyncio.CancelledError:
        if is_gone:
            if hasattr(task, "uncancel"):  # from Python 3.11 on
                task.uncancel()
            raise ClientGoneError from None
        raise
    finally:
        is_over = True
        watch.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
