"""A reply as a stream of chunks: what chat and plain completions share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from scalesim._version import __version__
from scalesim.requests.stream import AsyncReplyStream, TextPiece

FINGERPRINT = f"scalesim-{__version__}"
_ENCODER = json.JSONEncoder(separators=(",", ":"))  # made once: to make it costs as much as a chunk


async def merged(streams: Sequence[AsyncReplyStream]) -> AsyncIterator[tuple[int, TextPiece]]:
    """(index of its stream, piece), in the order in which pieces come. Raises the first error of
    any stream; leaving the loop cancels them all."""
    if len(streams) == 1:
        async with streams[0] as stream:
            async for piece in stream:
                yield 0, piece
        return
    pieces: asyncio.Queue[tuple[int, TextPiece | BaseException | None]] = asyncio.Queue()
    tasks = [
        asyncio.create_task(_forward(index, stream, pieces)) for index, stream in enumerate(streams)
    ]
    try:
        num_open = len(tasks)
        while num_open:
            index, found = await pieces.get()
            if found is None:
                num_open -= 1
            elif isinstance(found, BaseException):
                raise found
            else:
                yield index, found
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


async def _forward(
    index: int,
    stream: AsyncReplyStream,
    pieces: asyncio.Queue[tuple[int, TextPiece | BaseException | None]],
) -> None:
    try:
        async with stream:
            async for piece in stream:
                pieces.put_nowait((index, piece))
    except asyncio.CancelledError:
        raise
    except Exception as error:
        pieces.put_nowait((index, error))
    else:
        pieces.put_nowait((index, None))


class Chunks:
    """Writes the chunks of one reply: what is the same in all of them is written once."""

    def __init__(self, same: Mapping[str, Any], with_usage: bool) -> None:
        self._head = b"data: " + _json(same)[:-1] + b',"choices":'
        self._tail = (b',"usage":null' if with_usage else b"") + b"}\n\n"

    def choice(self, choice: dict[str, Any]) -> bytes:
        """A chunk of one choice."""
        return self._head + b"[" + _json(choice) + b"]" + self._tail

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The last chunk, which has no choice."""
        return self._head + b'[],"usage":' + _json(usage) + b"}\n\n"


def _json(value: Mapping[str, Any]) -> bytes:
    return _ENCODER.encode(value).encode()
