"""Several keys: what one key's holders say is found by them alone."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

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


def test_a_client_keeps_its_own_prompts_apart() -> None:
    """By ``cache_salt``, which is vLLM's name for it."""
    with tiny_engine() as engine, serving(engine, api_keys=(FIRST,)) as server:
        assert cached(server, FIRST, cache_salt="x") == 0
        assert cached(server, FIRST, cache_salt="y") == cached(server, FIRST) == 0
        assert cached(server, FIRST, cache_salt="x") > 100
