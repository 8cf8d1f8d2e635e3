"""A client that keeps a server busy: many connections, each with the same request again and again.

A program of its own, so that what it costs is not the server's: ``python http_load.py`` with a JSON
object on its standard input, and one on its standard output. Standard library only.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field


@dataclass
class Load:
    """``connections`` send ``body`` to ``path``: ``requests`` in all, or for ``seconds``; ``rate``
    is how many a second all together begin, 0: as many as are answered."""

    port: int
    path: str
    body: str
    connections: int
    requests: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    key: str = ""


@dataclass
class Answers:
    """Of each answer: its status, and the seconds to its first byte and to its last."""

    statuses: list[int] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    last_s: list[float] = field(default_factory=list)
    wall_s: float = 0.0


async def visit(load: Load, index: int, answers: Answers, end_s: float) -> None:
    """One connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", load.port, limit=1 << 26)
    body = load.body.encode()
    head = (
        f"POST {load.path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {load.key}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    sent = head.encode() + body
    period_s = load.connections / load.rate if load.rate else 0.0
    due_s = time.perf_counter() + period_s * index / load.connections
    left = load.requests // load.connections if load.requests else sys.maxsize
    while left > 0 and time.perf_counter() < end_s:
        if period_s:
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            due_s += period_s
        start_s = time.perf_counter()
        writer.write(sent)
        headers = await reader.readuntil(b"\r\n\r\n")
        first_s = time.perf_counter() - start_s
        if b"chunked" in headers:
            await reader.readuntil(b"\r\n0\r\n\r\n")
        else:
            length = headers.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
            await reader.readexactly(int(length))
        answers.statuses.append(int(headers[9:12]))
        answers.first_s.append(first_s)
        answers.last_s.append(time.perf_counter() - start_s)
        left -= 1
    writer.close()


async def run(load: Load) -> Answers:
    answers = Answers()
    start_s = time.perf_counter()
    end_s = start_s + load.seconds if load.seconds else sys.float_info.max
    await asyncio.gather(*(visit(load, index, answers, end_s) for index in range(load.connections)))
    answers.wall_s = time.perf_counter() - start_s
    return answers


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(run(Load(**json.load(sys.stdin)))))))
