"""KV hint envelopes, alone and with a call: each action has its outcome."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.engine.world import tiny_engine
from tests.server.world import KEY, Running, serving

OTHER_KEY = "another-key-of-the-tests"
PROMPT = "You are an agent of a town. " * 4


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with tiny_engine() as engine, serving(engine, api_keys=(KEY, OTHER_KEY)) as server:
        yield server


def client(running: Running, key: str = KEY) -> httpx2.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.Client(base_url=running.url, headers=headers)


@pytest.fixture
def http(running: Running) -> Iterator[httpx2.Client]:
    with client(running) as made:
        for name in ("ada", "bob"):
            call(made, name)
        yield made


def call(http: httpx2.Client, agent: str, **fields: Any) -> httpx2.Response:
    body = {"prompt": PROMPT + agent * 20, "max_tokens": 2, "agent_id": agent} | fields
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response


def envelope(*actions: Any) -> dict[str, Any]:
    listed = [
        {
            "action_id": f"a-{index}",
            "action_version": "1.0",
            "action_type": kind,
            "payload": payload,
        }
        if isinstance(kind, str)
        else kind
        for index, (kind, payload) in enumerate(actions)
    ]
    return {"protocol_version": "1.0", "message_id": "m-1", "actions": listed}


def outcomes(http: httpx2.Client, *actions: Any) -> list[str]:
    response = http.post("/v1/kv_hints", json=envelope(*actions))
    assert response.status_code == 200, response.text
    told = response.json()
    assert told["message_id"] == "m-1" and len(told["outcomes"]) == len(actions)
    return [row["outcome"] for row in told["outcomes"]]


def seen(http: httpx2.Client, agent: str) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"/v1/agents/{agent}").json()
    return found


def test_each_action_by_agent(http: httpx2.Client) -> None:
    assert outcomes(http, ("kv.retain", {"session_id": "ada", "ttl_seconds": 60})) == ["accepted"]
    assert 50 < seen(http, "ada")["pinned_seconds"] <= 60
    assert outcomes(http, ("kv.release", {"agent_id": "ada"})) == ["accepted"]
    assert seen(http, "ada")["pinned_seconds"] == 0
    assert outcomes(http, ("kv.demote", {"agent_id": "ada"})) == ["accepted"]
    assert seen(http, "ada")["next_use"] == 2.0**52
    now = seen(http, "ada")["tick"]
    assert outcomes(http, ("kv.prefetch", {"agent_id": "ada"})) == ["accepted"]
    assert seen(http, "ada")["next_use"] == now
    assert outcomes(http, ("kv.prefetch", {"agent_id": "bob", "in": 5})) == ["deferred"]
    assert seen(http, "bob")["next_use"] == now + 5
    at = {"agent_id": "bob", "at": now + 9, "confidence": 0.9}
    assert outcomes(http, ("sim.expect", at)) == ["accepted"]
    assert seen(http, "bob")["next_use"] == now + 9


def test_by_prefix_and_by_list(running: Running, http: httpx2.Client) -> None:
    assert outcomes(
        http,
        ("kv.retain", {"prefix": PROMPT}),
        ("kv.demote", {"prefix": PROMPT + "ada" * 20}),
        ("kv.retain", {"prefix": "Somebody else's prompt, of more than a block. " * 2}),
        ("kv.retain", {"prefix": "short"}),
        ("kv.demote", {"agents": ["ada", "bob"]}),
        ("kv.demote", {"agents": ["ada", "eve"]}),
        ("kv.demote", {"agents": ["eve"]}),
    ) == ["accepted", "accepted", "missing", "missing", "accepted", "clipped", "missing"]
    ids = running.service.engine.model.token_ids(PROMPT).tolist()
    assert outcomes(http, ("kv.release", {"prefix": ids})) == ["accepted"]
    assert seen(http, "ada")["next_use"] is None


def test_what_is_clipped_missing_or_refused(http: httpx2.Client) -> None:
    told = outcomes(
        http,
        ("kv.retain", {"agent_id": "ada", "ttl_seconds": 1e6}),
        ("kv.retain", {"agent_id": "nobody"}),
        ("kv.fetch", {"worker": "10.0.0.1"}),
        ("kv.retain", {}),
        ("kv.retain", {"agent_id": "ada", "ttl_seconds": -1}),
        ("kv.retain", ["ada"]),
        ("kv.prefetch", {"agent_id": ""}),
        ("kv.demote", {"agents": "ada"}),
        ("kv.demote", {"prefix": {"a": 1}}),
        ("sim.expect", {"agent_id": "ada"}),
        ("sim.expect", {"agent_id": "ada", "in": 1, "at": 2}),
        ({"action_type": "kv.retain"}, None),
        (None, None),
        ({"action_id": "x", "action_type": "kv.retain", "action_version": "2.0"}, None),
    )
    assert told == ["clipped", "missing", *["rejected"] * 12]
    assert 3500 < seen(http, "ada")["pinned_seconds"] <= 3600
    response = http.post("/v1/kv_hints", json=envelope(("kv.fetch", {})))
    [row] = response.json()["outcomes"]
    assert row["action_id"] == "a-0" and "kv.retain" in row["reason"]
    outcomes(http, ("kv.release", {"agent_id": "ada"}))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"protocol_version": "2.0", "message_id": "m", "actions": []},
        {"protocol_version": 1, "message_id": "m", "actions": []},
        {"protocol_version": "1.0", "message_id": 1, "actions": []},
        {"protocol_version": "1.0", "message_id": "m", "actions": {}},
        {"protocol_version": "1.0", "message_id": "m", "actions": [None] * 257},
    ],
)
def test_what_is_no_envelope(http: httpx2.Client, body: Any) -> None:
    response = http.post("/v1/kv_hints", json=body)
    assert response.status_code == 400 and "kv_hints" in response.json()["error"]["message"]
    carried = call(http, "ada", kv_hints=body)
    assert carried.headers["x-scalesim-kv-hints"] == "unreadable"


def test_with_a_call(http: httpx2.Client) -> None:
    hints = envelope(("kv.retain", {"agent_id": "cy"}), ("kv.fetch", {}), ("sim.none", {}))
    reply = call(http, "cy", kv_hints=hints)
    assert reply.headers["x-scalesim-kv-hints"] == "accepted=1, rejected=2"
    assert seen(http, "cy")["pinned_seconds"] > 50
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "stream": True}
    chat = http.post("/v1/chat/completions", json=body | {"kv_hints": hints, "agent_id": "cy"})
    assert chat.headers["x-scalesim-kv-hints"] == "accepted=1, rejected=2"
    assert "x-scalesim-kv-hints" not in call(http, "cy").headers
    outcomes(http, ("kv.release", {"agent_id": "cy"}))


def test_an_envelope_reaches_the_agents_of_its_key_only(
    running: Running, http: httpx2.Client
) -> None:
    with client(running, OTHER_KEY) as theirs:
        call(theirs, "zoe")
        assert outcomes(http, ("kv.demote", {"agent_id": "zoe"})) == ["missing"]
        assert outcomes(http, ("kv.demote", {"prefix": PROMPT})) == ["accepted"]
        assert seen(theirs, "zoe")["next_use"] is None
