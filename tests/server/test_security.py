"""Security: what listens, who may ask, what is told, what is never reached."""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.routing import Route

from scalesim.engine.engine import Engine
from scalesim.errors import ConfigError
from scalesim.server.app import ROUTES, make_app
from scalesim.server.config import ServerConfig, is_loopback
from tests.server.world import KEY, Running, serving

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "src" / "scalesim" / "server"
HEADERS = {"authorization": f"Bearer {KEY}"}
PATHS = [
    *(re.sub(r"\{[a-z:]+\}", "x", row.path) for row in ROUTES),
    "/", "/docs", "/openapi.json", "/metrics", "/v1", "/v1/", "//health", "/health/", "/HEALTH",
    "/health/../v1/models", "/%2e%2e/v1/models", "/health%2f", "/health;x",
    "/health%00", "/static/../../etc/passwd", "/v1/models?api_key=" + KEY,
]  # fmt: skip


# -- who may ask -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"])
def test_every_route_needs_the_key(running: Running, method: str) -> None:
    """Deny by default: also paths that there are not."""
    with httpx2.Client(base_url=running.url) as client:
        for path in PATHS:
            if path == "/health":
                continue
            for headers in ({}, {"authorization": "Bearer wrong-key-1"}, {"authorization": KEY}):
                reply = client.request(method, path, headers=headers)
                assert reply.status_code == 401, (method, path, headers)
                assert reply.headers["www-authenticate"].startswith(("Bearer", "Basic"))


def test_health_alone_is_open_and_says_one_word(running: Running) -> None:
    reply = httpx2.get(f"{running.url}/health")
    assert reply.status_code == 200 and reply.json() == {"status": "ready"}
    assert [row.path for row in ROUTES if row.access == "open"] == ["/health"]


def test_what_is_in_the_table_is_what_is_routed(running: Running, engine: Engine) -> None:
    app = make_app(engine, ServerConfig())
    routed = [route.path for route in app.routes if isinstance(route, Route)]
    assert routed == [row.path for row in ROUTES if row.access != "admin"]
    assert len(routed) == len(app.routes)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        f"bearer  {KEY}",
        f"Basic {KEY}",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
    ],
)
def test_what_is_no_key(running: Running, value: str) -> None:
    reply = httpx2.get(f"{running.url}/v1/models", headers={"authorization": value})
    assert reply.status_code == 401


def test_two_headers_are_no_key(running: Running) -> None:
    both = [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer other-key-2")]
    assert httpx2.get(f"{running.url}/v1/models", headers=both).status_code == 401


def test_each_of_several_keys_opens(engine: Engine) -> None:
    keys = ("first-key-1", "second-key-2")
    with serving(engine, api_keys=keys) as server:
        for key in keys:
            headers = {"authorization": f"Bearer {key}"}
            assert httpx2.get(f"{server.url}/v1/models", headers=headers).status_code == 200
        assert httpx2.get(f"{server.url}/v1/models", headers=HEADERS).status_code == 401


def test_keys_are_compared_by_their_digests_in_constant_time() -> None:
    source = (SERVER / "gate.py").read_text(encoding="utf-8")
    assert "hmac.compare_digest" in source
    compared = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare) and "key" in ast.unparse(node).lower()
    ]
    assert sorted(compared) == ["key is None", "len(self._keys) + len(self._admin_keys) > 1"]


def test_keys_are_shown_nowhere(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    config = ServerConfig(api_keys=(KEY,), admin_keys=("admin-key-1",))
    said = repr(config) + str(config)
    with serving(engine) as server:
        for headers in (HEADERS, {"authorization": f"Bearer {KEY}x"}):
            for path in ("/v1/models", "/ready", "/version", "/nothing"):
                reply = httpx2.get(server.url + path, headers=headers)
                said += reply.text + repr(reply.headers)
    assert KEY not in said + caplog.text and "admin-key-1" not in said


@pytest.mark.parametrize(
    "keys", [("short",), ("with space in it",), ("zwölf-zeichen",), ("a\nbcdefgh",)]
)
def test_keys_that_are_none(keys: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="api_keys: a key"):
        ServerConfig(api_keys=keys)


def test_an_adapter_that_is_called_like_the_model_is_refused(tmp_path: Path) -> None:
    """Nobody could reach it: a name stands for the model first."""
    with pytest.raises(ConfigError, match="adapters='base' is a name of the model too"):
        ServerConfig(names=("model", "base"), adapters={"pirate": tmp_path, "base": tmp_path})


# -- what listens ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.7", "example.org", "127.0.0.1.evil.org"]
)
def test_other_machines_need_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match=r"host=.* other machines, and there is no key"):
        ServerConfig(host=host)
    assert ServerConfig(host=host, api_keys=(KEY,)).host == host
    assert not is_loopback(host)


def test_loopback_needs_none() -> None:
    for host in ("127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"):
        assert is_loopback(host) and ServerConfig(host=host).host == host


def test_a_page_of_another_site_reaches_nothing(engine: Engine) -> None:
    """A name that was pointed at this machine, and a form that needs no permission to be sent."""
    with serving(engine, api_keys=()) as server:
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::1].evil"):
            reply = httpx2.get(f"{server.url}/v1/models", headers={"host": host})
            assert reply.status_code == 403 and reply.json()["error"]["code"] == "host_not_allowed"
        for host in (
            "localhost",
            f"localhost:{server.port}",
            f"127.0.0.1:{server.port}",
            "[::1]:80",
        ):
            assert httpx2.get(f"{server.url}/v1/models", headers={"host": host}).is_success
        form = httpx2.post(
            f"{server.url}/v1/completions",
            content='{"prompt": "a"}',
            headers={"content-type": "text/plain"},
        )
        assert form.status_code == 400 and "access-control-allow-origin" not in form.headers


AUDITED = """
    import sys
    SEEN = []
    def hook(name, arguments):
        if name in ("socket.bind", "socket.connect", "subprocess.Popen", "os.system", "os.exec",
                    "os.posix_spawn", "os.fork", "pickle.find_class"):
            SEEN.append((name, str(arguments[1:] if name.startswith("socket") else "")))
    import httpx2, json, threading
    from tests.engine.world import tiny_engine
    from tests.server.world import serving, KEY
    engine = tiny_engine()
    agent = engine.agent("warm").generate("a", max_tokens=1)
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    bodies = json.load(open(sys.argv[1]))
    ours = set()
    sys.addaudithook(hook)
    with serving(engine, embeddings=True) as server:
        with httpx2.Client(base_url=server.url, headers=headers) as client:
            SEEN.append(("client", "begins"))
            for path, body in bodies:
                client.post(path, content=json.dumps(body))
            for path in ("/v1/models", "/health", "/ready", "/version", "/"):
                client.get(path)
            SEEN.append(("client", "ends"))
        port = server.port
    engine.close()
    print(json.dumps([port, SEEN]))
"""


def test_one_socket_listens_and_none_calls_out(tmp_path: Path) -> None:
    """By Python's audit hook, over every route: nothing is run, unpickled or connected to but by
    the client of the test, which connects to the server."""
    image = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}
    file = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
    say = {"max_tokens": 2}
    bodies = [
        ["/v1/chat/completions", {**say, "messages": [{"role": "user", "content": "hi"}]}],
        ["/v1/chat/completions", {**say, "messages": [{"role": "user", "content": [image, file]}]}],
        ["/v1/chat/completions", {**say, "messages": [], "model": "http://127.0.0.1:9/model"}],
        ["/v1/completions", {**say, "prompt": "x", "n": 2, "stream": True}],
        ["/v1/completions", {**say, "prompt": "x", "prompt_embeds": "gASVAAAA"}],
        ["/v1/completions", {**say, "prompt": "x", "model": "../../../etc/passwd"}],
        ["/v1/embeddings", {"input": "x"}],
        ["/tokenize", {"prompt": "x"}],
        ["/detokenize", {"tokens": [104]}],
    ]
    given = tmp_path / "bodies.json"
    given.write_text(json.dumps(bodies))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(AUDITED), str(given)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    port, seen = json.loads(done.stdout)
    binds = [what for name, what in seen if name == "socket.bind"]
    assert binds == ["(('127.0.0.1', 0),)"]
    calls = {what for name, what in seen if name == "socket.connect"}
    assert calls == {f"(('127.0.0.1', {port}),)"}
    assert {name for name, _ in seen} == {"socket.bind", "socket.connect", "client"}


# -- code and files --------------------------------------------------------------------------------

FORBIDDEN = {
    "pickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "subprocess",
    "requests",
    "ctypes",
}
CALLS = re.compile(r"\b(eval|exec|compile|__import__|torch\.load|yaml\.load|os\.system)\(")


@pytest.mark.parametrize("path", sorted(SERVER.rglob("*.py")), ids=lambda path: path.stem)
def test_no_code_bearing_format_is_in_the_server(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not imported & FORBIDDEN
    called = [ast.unparse(node.func) + "(" for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not [name for name in called if CALLS.match(name)]


def test_administrative_routes_are_absent_without_a_key(running: Running) -> None:
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/flush_cache", "/shutdown"):
        assert httpx2.post(running.url + path, headers=HEADERS, json={}).status_code == 404


# -- what is told ----------------------------------------------------------------------------------


def test_a_fault_of_ours_tells_nothing(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """The caller learns the request's id, the log where it happened; neither has the prompt."""
    secret = "the prompt that nobody may read"
    with serving(engine) as server, pytest.MonkeyPatch.context() as patch:

        def breaks(*_: Any, **__: Any) -> Any:
            raise RuntimeError(f"/home/someone/model.py at 0x7f001122: {secret}")

        patch.setattr(Engine, "generate_async", breaks)
        body = {"prompt": secret}
        reply = httpx2.post(f"{server.url}/v1/completions", headers=HEADERS, json=body)
    error = reply.json()["error"]
    assert reply.status_code == 500 and error["type"] == "server_error"
    assert error["message"].startswith("something broke inside the server (request req_")
    request_id = reply.headers["x-request-id"]
    assert request_id in error["message"] and request_id in caplog.text
    assert "RuntimeError" in caplog.text and secret not in caplog.text + reply.text


def test_prompts_and_texts_are_not_logged(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "a very particular prompt"
    text = ""
    for body in ({"prompt": secret}, {"prompt": secret, "stream": True}, {"prompt": [secret, 1]}):
        url = f"{running.url}/v1/completions"
        text += httpx2.post(url, headers=HEADERS, json={**body, "max_tokens": 4}).text
    ours = [record for record in caplog.records if not record.name.startswith(("http", "asyncio"))]
    assert not ours, [record.getMessage() for record in ours]


def test_templates_of_clients_are_not_run(running: Running) -> None:
    """Messages are values: what looks like a template in them is text."""
    for attack in (
        "{{ 7*7 }}",
        "{% for x in ().__class__.__base__.__subclasses__() %}{% endfor %}",
    ):
        body = {"messages": [{"role": "user", "content": attack}]}
        reply = httpx2.post(f"{running.url}/tokenize", headers=HEADERS, json=body)
        shown = httpx2.post(
            f"{running.url}/detokenize", headers=HEADERS, json={"tokens": reply.json()["tokens"]}
        )
        assert attack in shown.json()["prompt"]
