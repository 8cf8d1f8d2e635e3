"""Several keys: what one key's holders say is found by them alone."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import httpx2
import pytest

from scalesim.server.config import ServerLimits
from scalesim.server.errors import ApiError
from scalesim.server.queue import OpenRequests
from tests.engine.world import tiny_engine
from tests.server.world import Running, serving

FIRST, SECOND = "first-key-1", "second-key-2"


def cached(server: Running, key: str, **more: Any) -> int:
    body = {"prompt": "what the town knows of the mill " * 4, "max_tokens": 1, **more}
    headers = {"authorization": f"Bearer {key}"}
    reply = httpx2.post(f"{server.url}/v1/completions", json=body, headers=headers)
    found: int = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


@pytest.mark.parametrize("agent", [{}, {"agent_id": "ada"}])
def test_a_prefix_is_shared_within_one_key(agent: dict[str, str]) -> None:
    with tiny_engine() as engine, serving(engine, api_keys=(FIRST, SECOND)) as server:
        assert cached(server, FIRST, **agent) == 0
        assert cached(server, FIRST, **agent) > 100
        assert cached(server, SECOND, **agent) == 0  # nobody learns what another key has said
        assert cached(server, SECOND, **agent) > 100
        assert cached(server, FIRST, **agent) > 100


def test_no_key_shuts_out_another() -> None:
    """A key may fill seven eighths; another one finds its place beside it, for calls and bytes."""
    limits = ServerLimits(max_open_requests=16, max_open_bytes=1600)
    greedy, modest = b"greedy", b"modest"
    queue = OpenRequests(limits, num_keys=2)
    with ExitStack() as open_calls:
        for _ in range(14):
            open_calls.enter_context(queue.of(greedy))
        queue.add(1400, greedy)
        for refused in (lambda: queue.of(greedy).__enter__(), lambda: queue.add(1, greedy)):
            with pytest.raises(ApiError, match="this key") as found:
                refused()
            assert found.value.status == 429 and found.value.headers["retry-after"]
        for _ in range(2):
            open_calls.enter_context(queue.of(modest))
        queue.add(200, modest)
        assert (queue.count, queue.bytes, queue.refused) == (16, 1600, 2)
        with pytest.raises(ApiError, match="16 requests are open"):
            queue.of(modest).__enter__()
    queue.remove(1400, greedy)
    queue.remove(200, modest)
    assert queue.count == queue.bytes == 0
    with ExitStack() as open_calls:  # and a key alone finds all of it but the last eighth
        for _ in range(14):
            open_calls.enter_context(queue.of(modest))


def test_a_key_among_several_gives_everything_back() -> None:
    with tiny_engine() as engine, serving(engine, api_keys=(FIRST, SECOND)) as server:
        for key in (FIRST, SECOND):
            cached(server, key)
    # A client may have its reply before the server has closed its books.
    assert server.service.open.count == server.service.open.bytes == 0


def test_a_client_keeps_its_own_prompts_apart() -> None:
    """By ``cache_salt``, which is vLLM's name for it."""
    with tiny_engine() as engine, serving(engine, api_keys=(FIRST,)) as server:
        assert cached(server, FIRST, cache_salt="x") == 0
        assert cached(server, FIRST, cache_salt="y") == cached(server, FIRST) == 0
        assert cached(server, FIRST, cache_salt="x") > 100
