"""Clients that come and go: some leave at random moments, some come all at once."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import openai

from scalesim.memory.manager import MemoryManager
from tests.server.world import KEY, PATIENCE_S, Running

LONG: dict[str, Any] = {"prompt": "once", "max_tokens": 3000, "ignore_eos": True, "stream": True}


def until(is_so: Callable[[], bool]) -> None:
    """Look again and again, because another thread makes it so."""
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end, "it did not become so"
        threading.Event().wait(0.01)


def nothing_is_open(running: Running) -> bool:
    memory: MemoryManager = running.service.engine.parts.memory
    scheduler = running.service.engine.parts.scheduler
    service = running.service
    return (
        service.open.count == service.open.bytes == 0
        and not scheduler.has_work
        and memory.num_lost_pages == 0
    )


def request_bytes(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def random_visits(running: Running, seed: int, count: int) -> Counter[str]:
    """Of ``count`` clients, four in five close their connections at a random moment: within the
    request, in the queue, or while tokens come. Afterwards nothing is open and all pages can be had
    again; the other clients were answered."""
    rng = random.Random(seed)
    plans = [
        (rng.random() * 0.1, rng.random() < 0.5, rng.random() < 0.8, rng.random())
        for _ in range(count)
    ]

    def visit(plan: tuple[float, bool, bool, float]) -> str:
        delay_s, stream, leaves, share = plan
        body = {**LONG, "max_tokens": 12, "stream": stream, "n": 1 + stream}
        with closing(socket.create_connection(("127.0.0.1", running.port), 30)) as connection:
            sent = request_bytes("/v1/completions", body)
            cut = int(share * len(sent)) if leaves and delay_s < 0.02 else len(sent)
            connection.sendall(sent[:cut])
            if leaves:
                threading.Event().wait(delay_s)
                return "disconnects"
            said = b""
            while b'"finish_reason":"length"' not in said:
                said += connection.recv(65536)
            return "answered"

    with ThreadPoolExecutor(16) as threads:
        found = Counter(threads.map(visit, plans))
    assert found["answered"] == sum(not leaves for _, _, leaves, _ in plans)
    until(lambda: nothing_is_open(running))
    engine = running.service.engine
    engine.forget([])
    assert engine.parts.memory.num_lost_pages == 0 and engine.stats.restarts == 0
    whole = engine.model.max_len - 8  # a call that needs the whole pool
    reply = running.client().completions.create(model="tiny", prompt=[7] * whole, max_tokens=8)
    assert reply.usage and reply.usage.total_tokens <= engine.model.max_len
    return found


def crowd(running: Running, count: int) -> Counter[str]:
    """``count`` calls of the OpenAI SDK at once: each is answered, and none was refused for want of
    a place. The SDK gives a connection 5 seconds, of which it spends more on its own work."""

    async def ask_all() -> int:
        async with openai.AsyncOpenAI(
            base_url=f"{running.url}/v1", api_key=KEY, timeout=openai.Timeout(600.0)
        ) as client:
            calls = [
                client.completions.create(model="tiny", prompt=f"{number}", max_tokens=1)
                for number in range(count)
            ]
            return sum(len(reply.choices) for reply in await asyncio.gather(*calls))

    answered = asyncio.run(ask_all())
    assert answered == count and running.service.open.refused == 0
    return Counter({"calls": answered})
