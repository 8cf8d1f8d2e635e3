"""Hints out of band, from the body of a request to the host tier, and the entry points."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette

from scalesim.errors import ConfigError
from scalesim.vllm.core_calls import METHODS
from scalesim.vllm.host_tier import HostTier
from scalesim.vllm.plugin import SUPPORTED, register
from scalesim.vllm.routes import MAX_BODY_BYTES, OFF, HintRoutes
from scalesim.vllm.settings import PluginSettings


class Client:
    """vLLM's client of the engine's core, with the core behind it."""

    def __init__(self, connector: object) -> None:
        scheduler = SimpleNamespace(get_kv_connector=lambda: connector)
        self.core = SimpleNamespace(scheduler=scheduler)
        self.engine_core = self

    async def call_utility_async(self, method: str, *args: Any) -> Any:
        return METHODS[method](self.core, *args)


class Server:
    """An app with the routes alone."""

    def __init__(self, client: Client | None) -> None:
        self.app, self.routes = Starlette(), HintRoutes()
        self.routes.attach_router(self.app)
        asyncio.run(self.routes.init_state(client, None, None))

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": method, "path": path, "headers": [], "query_string": b"",
            "root_path": "", "scheme": "http", "server": ("vllm", 80), "http_version": "1.1",
        }  # fmt: skip
        call: Callable[..., Awaitable[None]] = self.app
        asyncio.run(call(scope, receive, send))  # type: ignore[arg-type]
        return sent[0]["status"], json.loads(b"".join(each["body"] for each in sent[1:]))

    def post(self, path: str, **body: Any) -> tuple[int, Any]:
        return self.ask("POST", path, json.dumps(body).encode())


@pytest.fixture
def tier() -> HostTier:
    return HostTier(8)


@pytest.fixture
def server(tier: HostTier) -> Server:
    manager = SimpleNamespace(tier=tier)
    return Server(Client(SimpleNamespace(connector_scheduler=SimpleNamespace(manager=manager))))


@pytest.mark.parametrize(
    "paths",
    [
        ("/scalesim/expect", "/scalesim/tick", "/scalesim/forget"),
        ("/v1/agents/hints", "/v1/sim/tick", "/v1/agents/forget"),  # as scalesim.client asks
    ],
)
def test_hints_reach_the_host_tier(server: Server, tier: HostTier, paths: tuple[str, ...]) -> None:
    expect, tick, forget = paths
    assert server.post(tick, to=5) == (200, {"tick": 5.0})
    assert server.post(tick) == (200, {"tick": 6.0})
    told = {"in": {"ada": 3}, "at": {"bob": [7.5, 0.9]}, "interrupt": ["cy"]}
    assert server.post(expect, **told) == (200, {"accepted": 3})
    soonest = {owner.name: owner.next_use for owner in tier.board.soonest(5)}
    assert list(soonest.items()) == [("cy", 6.0), ("bob", 7.5), ("ada", 9.0)]
    assert server.post(forget, agents=["ada", "ada", "eve"]) == (200, {"forgotten": 1})
    status, stats = server.ask("GET", "/scalesim/stats")
    assert status == 200 and stats["agents"] == 2 and stats["now"] == 6.0


@pytest.mark.parametrize(
    "path, body, rule",
    [
        ("expect", b"{", "the body is no JSON"),
        ("expect", b"[]", "body=[] must be an object"),
        ("expect", b'{"inn": {"ada": 3}}', "must give a hint, as in"),
        ("expect", b'{"in": []}', "in=[] must map agents to ticks"),
        ("expect", b'{"in": ["ada"]}', "in=['ada'] must map agents to ticks"),
        ("expect", b'{"in": {"ada": "soon"}}', "in of 'ada'='soon' must be a number"),
        ("expect", b'{"in": {"ada": [1, 2]}}', "confidence of 'ada'=2 must be finite"),
        ("expect", b'{"interrupt": "ada"}', "interrupt='ada' must be a list of agents"),
        ("tick", b'{"to": -1}', "to=-1 must be finite, at least 0.0"),
        ("tick", b'{"by": 3}', "body={'by': 3} must be {}, {'n': 1} or {'to': 17}"),
        ("tick", b'{"n": 1, "to": 3}', "must be {}, {'n': 1} or {'to': 17}"),
        ("tick", b'{"n": 0}', "n=0 must be finite, above 0.0"),
        ("forget", b'{"agent": "ada"}', "agents=None must be a list of names"),
        ("forget", b'{"agents": "ada"}', "agents='ada' must be a list of names"),
        ("expect", b" " * (MAX_BODY_BYTES + 1), "send it in parts"),
    ],
)
def test_what_is_wrong_is_told(server: Server, path: str, body: bytes, rule: str) -> None:
    status, answer = server.ask("POST", f"/scalesim/{path}", body)
    assert status == 400 and rule in answer["error"]["message"]


@pytest.mark.parametrize("client", [None, Client(None), Client(SimpleNamespace())])
def test_without_the_plug_in_the_reply_says_so(client: Client | None) -> None:
    server = Server(client)
    for path, body in (
        ("expect", {"in": {"ada": 1}}),
        ("tick", {}),
        ("forget", {"agents": ["ada"]}),
    ):
        status, answer = server.post(f"/scalesim/{path}", **body)
        assert status == 400 and answer["error"]["message"] == OFF
    assert server.ask("GET", "/scalesim/stats")[0] == 400


def test_register_never_raises(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if there were none
    register()
    assert not caplog.records
    package, release = ModuleType("vllm"), ModuleType("vllm.version")
    monkeypatch.setattr(release, "__version__", "99.1", raising=False)
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.version", release)
    register()  # this vLLM has nothing of what the plug-in needs
    said = [record.getMessage() for record in caplog.records]
    assert (
        said[0] == f"the ScaleSim plug-in is tested with vLLM {', '.join(SUPPORTED)}; this is 99.1"
    )
    assert "is off" in said[1] and len(said) == 2


def test_settings() -> None:
    assert PluginSettings.of({"prefetch_agents": 0}) == PluginSettings(0, False)
    assert PluginSettings.of({"cpu_bytes_to_use": 1, "learn": True}).learn
    with pytest.raises(ConfigError, match="prefetch_agents=-1 must be a whole number from 0"):
        PluginSettings.of({"prefetch_agents": -1})
    with pytest.raises(ConfigError, match="learn='yes' must be True or False"):
        PluginSettings.of({"learn": "yes"})
