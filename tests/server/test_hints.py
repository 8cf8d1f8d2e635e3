"""Hints over HTTP: with a call and in bulk, the clock, and what is asked for an agent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from scalesim.engine.engine import Engine
from scalesim.server.hints import batch_of, hear
from tests.engine.world import tiny_engine
from tests.server.world import KEY, Running, serving

OTHER_KEY = "another-key-of-the-tests"


@pytest.fixture
def running() -> Iterator[Running]:
    with tiny_engine() as engine, serving(engine) as server:
        yield server


@pytest.fixture
def http(running: Running) -> Iterator[httpx2.Client]:
    with client(running) as made:
        yield made


def client(running: Running, key: str = KEY) -> httpx2.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.Client(base_url=running.url, headers=headers)


def call(http: httpx2.Client, agent: str | None, path: str = "", **fields: Any) -> httpx2.Response:
    named = {} if agent is None else {"agent_id": agent}
    body = {"model": "tiny", "prompt": "hello", "max_tokens": 2} | named | fields
    response = http.post(f"{path}/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response


def post(http: httpx2.Client, path: str, body: object) -> dict[str, Any]:
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def next_use(http: httpx2.Client, agent: str) -> float | None:
    found: float | None = http.get(f"/v1/agents/{agent}").json()["next_use"]
    return found


# -- with a call -------------------------------------------------------------------------------


def test_a_call_says_when_the_next_one_comes(http: httpx2.Client) -> None:
    reply = call(http, "ada", sim_tick=5, next_call_in=3, hint_confidence=0.9)
    told = {name: reply.headers[f"x-scalesim-{name}"] for name in ("agent", "identity", "hint")}
    assert told == {"agent": "ada", "identity": "agent_id", "hint": "used"}
    assert next_use(http, "ada") == 8.0
    reply = call(http, "bob", sim_tick=2)  # the clock goes forward only
    assert reply.headers["x-scalesim-hint"] == "used"
    assert http.get("/v1/agents/bob").json()["tick"] == 5.0
    assert call(http, "bob").headers["x-scalesim-hint"] == "none"
    assert call(http, None, next_call_in=1).headers["x-scalesim-hint"] == "none"


def test_a_stream_says_so_too(http: httpx2.Client) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "stream": True}
    with http.stream(
        "POST", "/agents/ada/v1/chat/completions", json=body | {"next_call_in": 4}
    ) as reply:
        assert reply.headers["x-scalesim-identity"] == "path"
        assert reply.headers["x-scalesim-hint"] == "used"
        assert reply.read().endswith(b"data: [DONE]\n\n")
    assert next_use(http, "ada") == 4.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("next_call_in", -1),
        ("next_call_in", "soon"),
        ("next_call_in", 2**60),
        ("sim_tick", True),
        ("hint_confidence", 1.5),
        ("agent_id", ""),
        ("agent_id", ["ada"]),
    ],
)
def test_a_wrong_hint_is_the_callers_mistake(http: httpx2.Client, field: str, value: Any) -> None:
    body = {"prompt": "hello", "max_tokens": 2, "agent_id": "ada"} | {field: value}
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field


# -- in bulk -----------------------------------------------------------------------------------


def test_hints_in_bulk(http: httpx2.Client) -> None:
    call(http, "ada", sim_tick=10)
    told = post(
        http,
        "/v1/agents/hints",
        {
            "in": {"ada": 3, "bob": [12, 0.4]},
            "at": {"cy": 17.5, "dee": [18, 0.5]},
            "interrupt": ["eve"],
            "confidence": 0.9,
        },
    )
    assert told == {
        "accepted": 5, "ignored": 0, "ignored_agents": [], "missing": 0, "missing_agents": [],
    }  # fmt: skip
    found = {name: next_use(http, name) for name in ("ada", "bob", "cy", "dee", "eve")}
    assert found == {"ada": 13.0, "bob": 22.0, "cy": 17.5, "dee": 18.0, "eve": 10.0}
    listed = http.get("/v1/agents").json()
    assert [row["agent"] for row in listed["agents"]] == ["eve", "ada", "cy", "dee", "bob"]
    assert http.get("/v1/agents?q=e&limit=1").json()["count"] == 2


def test_an_entry_that_says_nothing_ends_nothing(http: httpx2.Client) -> None:
    entries = {"ada": 1, "bob": "soon", "cy": None, "dee": [1, 7], "eve": 10**400, "fay": True}
    told = post(http, "/v1/agents/hints", {"in": entries})
    assert (told["accepted"], told["ignored"]) == (1, 5)
    assert told["ignored_agents"] == ["bob", "cy", "dee", "eve", "fay"]
    assert http.get("/v1/agents/bob").status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"in": {}}, None),
        ({"in": ["ada"]}, "in"),
        ({"in": {"a\nb": 1}}, "in"),
        ({"in": {"": 1}}, "in"),
        ({"at": {"x" * 300: 1}}, "at"),
        ({"interrupt": "ada"}, "interrupt"),
        ({"interrupt": [None]}, "interrupt"),
        ({"in": {"ada": 1}, "confidence": 2}, "confidence"),
    ],
)
def test_a_body_that_is_none(http: httpx2.Client, body: Any, param: str | None) -> None:
    response = http.post("/v1/agents/hints", json=body)
    assert response.status_code == 400 and response.json()["error"]["param"] == param
    assert len(response.text) < 700


def test_agents_without_room_are_missing(running: Running, http: httpx2.Client) -> None:
    identity = running.service.identity
    names = [f"agent {index}" for index in range(3)]
    there, _ = identity.let_in([f"other {index}" for index in range(100_000 - 2)])
    told = post(http, "/v1/agents/hints", {"in": dict.fromkeys(names, 1), "interrupt": names})
    assert (told["accepted"], told["missing"], len(there)) == (4, 2, 99_998)
    assert told["missing_agents"] == ["agent 2", "agent 2"]


def test_a_hint_of_ten_thousand_takes_no_longer_than_one_of_a_thousand() -> None:
    """A batch that is looked through for each of its hints would take ten times as long a hint."""
    took_s: dict[int, list[float]] = {1_000: [], 10_000: []}
    with tiny_engine() as engine, serving(engine) as running:
        for at in range(7):
            for count, found in took_s.items():
                body = {"in": {f"agent {index}": at + index % 50 for index in range(count)}}
                begin_s = time.thread_time()
                told = hear(running.service, batch_of(body), "")
                found.append(time.thread_time() - begin_s)
                assert told["accepted"] == count
    assert min(took_s[10_000]) < 30 * min(took_s[1_000])


# -- the clock ---------------------------------------------------------------------------------


def test_the_clock(http: httpx2.Client) -> None:
    assert post(http, "/v1/sim/tick", {}) == {"tick": 1.0}
    assert post(http, "/v1/sim/tick", {"n": 2.5}) == {"tick": 3.5}
    assert post(http, "/v1/sim/tick", {"to": 17}) == {"tick": 17.0}
    assert post(http, "/v1/sim/tick", {"to": 3}) == {"tick": 17.0}
    for body in ({"n": 0}, {"n": 1, "to": 2}, {"to": -1}, {"n": "1"}):
        assert http.post("/v1/sim/tick", json=body).status_code == 400


# -- for one agent -----------------------------------------------------------------------------


def test_one_agent(http: httpx2.Client) -> None:
    for _ in range(2):
        call(http, "a/b c", prompt="x" * 200)
    told = http.get("/v1/agents/a%2Fb%20c").json()
    assert told["agent"] == "a/b c" and told["place"] == "device"
    assert told["pages"]["device"] >= 12 and told["last_miss"] is None
    call(http, "a/b c", prompt="y" * 200)
    miss = http.get("/v1/agents/a%2Fb%20c").json()["last_miss"]
    assert miss["cause"] == "prompt changed" and "at token" in miss["text"]
    assert http.get("/v1/agents/eve").json()["error"]["code"] == "agent_not_found"


def test_pins_end(http: httpx2.Client) -> None:
    call(http, "ada")
    assert post(http, "/v1/agents/ada/pin", {"seconds": 60})["pinned_seconds"] == 60
    assert 50 < http.get("/v1/agents/ada").json()["pinned_seconds"] <= 60
    post(http, "/v1/agents/ada/release", {})
    assert http.get("/v1/agents/ada").json()["pinned_seconds"] == 0
    for body in ({}, {"seconds": 0}, {"seconds": 3601}, {"seconds": True}):
        response = http.post("/v1/agents/ada/pin", json=body)
        assert response.json()["error"]["param"] == "seconds"
    for path in ("pin", "release", "fork"):
        body = {"seconds": 1, "child": "twin"}
        assert http.post(f"/v1/agents/eve/{path}", json=body).status_code == 404


def test_fork_and_forget(http: httpx2.Client) -> None:
    call(http, "ada", prompt="x" * 100)
    assert post(http, "/v1/agents/ada/fork", {"child": "twin"}) == {
        "agent": "twin",
        "parent": "ada",
    }
    assert http.get("/v1/agents/twin").json()["place"] == "device"
    assert http.delete("/v1/agents/ada").json() == {"agent": "ada", "forgotten": True}
    assert http.get("/v1/agents/ada").status_code == 404
    assert http.delete("/v1/agents/ada").status_code == 404
    told = post(http, "/v1/agents/forget", {"agents": ["twin", "ada", "twin"]})
    assert told == {"forgotten": 1, "missing": 1}
    assert call(http, "ada").headers["x-scalesim-agent"] == "ada"


def test_keys_do_not_see_each_others_agents() -> None:
    with (
        tiny_engine() as engine,
        serving(engine, api_keys=(KEY, OTHER_KEY)) as running,
        client(running) as mine,
        client(running, OTHER_KEY) as theirs,
    ):
        call(mine, "ada")
        call(theirs, "ada")
        call(theirs, "bob")
        post(mine, "/v1/agents/hints", {"in": {"ada": 7}})
        assert next_use(mine, "ada") == 7.0 and next_use(theirs, "ada") is None
        assert mine.get("/v1/agents/bob").status_code == 404
        assert [row["agent"] for row in mine.get("/v1/agents").json()["agents"]] == ["ada"]
        assert theirs.get("/v1/agents").json()["count"] == 2
        assert theirs.delete("/v1/agents/ada").status_code == 200
        assert mine.get("/v1/agents/ada").status_code == 200


def test_agents_beyond_the_bound_are_forgotten(engine: Engine) -> None:
    from scalesim.server.config import ServerConfig
    from scalesim.server.service import Service

    service = Service(engine, ServerConfig())
    engine.agent("old")
    service.identity.let_in(["old", *(f"other {index}" for index in range(99_999))])
    with service.identity.who_calls({"agent_id": "new"}, {}):
        pass
    assert "old" not in service.identity
