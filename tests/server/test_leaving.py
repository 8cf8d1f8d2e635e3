"""Clients that go away, read slowly or come too late; engines that fail; servers that stop."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import httpx2
import openai
import pytest

from scalesim.engine.engine import Engine
from scalesim.server.app import make_app
from scalesim.server.config import ServerConfig
from tests.engine.world import tiny_engine
from tests.server.visits import LONG, nothing_is_open, random_visits, request_bytes, until
from tests.server.world import KEY, PATIENCE_S, Running, serving

HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """On an engine of its own, whose pages are counted."""
    with tiny_engine() as engine, serving(engine) as found:
        yield found


@pytest.mark.parametrize("stream", [True, False])
def test_whoever_leaves_has_its_call_cancelled(server: Running, stream: bool) -> None:
    failed = server.service.engine.stats.failed
    with closing(socket.create_connection(("127.0.0.1", server.port))) as connection:
        connection.sendall(request_bytes("/v1/completions", {**LONG, "stream": stream}))
        until(lambda: server.service.open.count == 1)
    until(lambda: nothing_is_open(server))
    until(lambda: server.service.engine.stats.failed == failed + 1)


@pytest.mark.parametrize("stream", [True, False])
def test_a_prompt_that_is_refused_takes_the_others_along(server: Running, stream: bool) -> None:
    """They would be computed for nobody, and outside of the queue's limits."""
    prompts = ["once", [1] * 1_000_000, "twice"]
    body = {**LONG, "prompt": prompts, "stream": stream}
    reply = httpx2.post(f"{server.url}/v1/completions", json=body, headers=HEADERS)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    until(lambda: nothing_is_open(server))


def test_random_disconnects_leave_nothing(server: Running) -> None:
    """Of 100 clients, many close their connections at random moments; the others are answered."""
    assert random_visits(server, seed=0, count=100)["disconnects"] > 50


def test_a_slow_reader_is_dropped() -> None:
    limits = {"send_timeout": 0.3, "max_send_bytes": 1024}
    body = {**LONG, "logprobs": 20, "n": 2}
    with (
        tiny_engine() as engine,
        serving(engine, limits=limits) as server,
        closing(socket.socket()) as connection,
    ):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(request_bytes("/v1/completions", body))
        until(lambda: engine.stats.failed == 2)  # though the client is still there
        until(lambda: nothing_is_open(server))


def test_what_is_sent_goes_at_once(server: Running) -> None:
    """Without Nagle's delay, by which the second part of a reply waits 40 ms for the first one."""
    with closing(socket.create_connection(("127.0.0.1", server.port))):
        until(lambda: len(server.server.server_state.connections) > 0)
        for connection in server.server.server_state.connections:
            accepted = connection.transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_a_deadline_is_504(server: Running) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "timeout": 0.05, "max_tokens": 3000}
    asked = {**body, "ignore_eos": True}
    reply = httpx2.post(f"{server.url}/v1/chat/completions", json=asked, headers=HEADERS)
    assert reply.status_code == 504 and reply.json()["error"]["code"] == "deadline_exceeded"
    until(lambda: nothing_is_open(server))


def test_a_stream_that_fails_says_so(server: Running) -> None:
    """In a last event, which the SDK raises; never by a silent end."""
    url = f"{server.url}/v1/chat/completions"
    body = {"messages": [{"role": "user", "content": "hi"}], "timeout": 0.2, "max_tokens": 3000}
    asked = {**body, "ignore_eos": True, "stream": True}
    said = httpx2.post(url, json=asked, headers=HEADERS).text.strip().split("\n\n")
    assert json.loads(said[-1].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    assert "[DONE]" not in said[-1] and '"finish_reason":"stop"' not in "".join(said)
    client = server.client(max_retries=0)
    with pytest.raises(openai.APIError, match="timeout"):
        list(
            client.completions.create(
                model="tiny", prompt="a", max_tokens=3000, stream=True,
                extra_body={"timeout": 0.2, "ignore_eos": True},
            )
        )  # fmt: skip


def test_a_stream_that_waits_is_kept_alive() -> None:
    """A comment comes while the call stands in the queue; clients skip it."""
    with (
        tiny_engine(max_num_seqs=1) as engine,
        serving(engine, limits={"keep_alive": 0.05}) as server,
    ):
        with httpx2.stream(
            "POST", f"{server.url}/v1/completions", json=LONG, headers=HEADERS
        ) as first:
            pieces = first.iter_bytes()
            next(pieces)
            with httpx2.stream(
                "POST", f"{server.url}/v1/completions", json=LONG, headers=HEADERS
            ) as second:
                assert next(second.iter_text()).startswith(": waiting\n\n")
        until(lambda: nothing_is_open(server))


def test_an_engine_that_has_stopped_is_503() -> None:
    with tiny_engine() as engine, serving(engine) as server:
        engine.close()
        body = {"prompt": "a"}
        reply = httpx2.post(f"{server.url}/v1/completions", json=body, headers=HEADERS)
        assert reply.status_code == 503 and reply.headers["retry-after"] == "1"
        assert reply.json()["error"]["code"] == "engine_closed"
        assert httpx2.get(f"{server.url}/health").json() == {"status": "failed"}


@contextmanager
def loading(**limits: float) -> Iterator[tuple[Running, threading.Event]]:
    """A server whose model is loaded once the event is set."""
    may_go_on = threading.Event()

    def load() -> Engine:
        assert may_go_on.wait(PATIENCE_S)
        return tiny_engine()

    with serving(load, limits=limits) as server:
        try:
            yield server, may_go_on
        finally:
            may_go_on.set()


BRIEF = {"prompt": "a", "max_tokens": 1}


def test_while_the_model_loads_calls_wait() -> None:
    """As a program's first call, made at once: it need not try again."""
    with loading() as (server, may_go_on), ThreadPoolExecutor(2) as threads:
        health = httpx2.get(f"{server.url}/health")
        assert health.status_code == 503 and health.json() == {"status": "starting"}
        for path, status in (("/v1/models", 503), ("/ready", 503), ("/version", 200)):
            assert httpx2.get(server.url + path, headers=HEADERS).status_code == status
        client = server.client(max_retries=0)
        ask = client.completions.create
        early = [
            threads.submit(ask, model="tiny", stream=stream, **BRIEF) for stream in (False, True)
        ]
        until(lambda: server.service.open.count == 2)
        may_go_on.set()
        assert early[0].result().usage.completion_tokens == 1 and len(list(early[1].result())) > 0
        assert httpx2.get(f"{server.url}/health").status_code == 200


def test_a_model_that_takes_too_long_to_load_is_503() -> None:
    with loading(start_timeout=0.1) as (server, _):
        early = httpx2.post(f"{server.url}/v1/completions", json=BRIEF, headers=HEADERS)
        assert early.status_code == 503 and early.json()["error"]["code"] == "starting"
        assert early.headers["retry-after"]


@pytest.mark.parametrize("ends", ["client", "server"])
def test_whoever_waits_for_the_model_may_go(ends: str) -> None:
    """A client that leaves has no place any more; a server that stops sends all away."""
    with loading() as (server, _):
        connection = socket.create_connection(("127.0.0.1", server.port), 20)
        with closing(connection):
            connection.sendall(request_bytes("/v1/completions", BRIEF))
            until(lambda: server.service.open.count == 1)
            if ends == "server":
                server.server.stop()
                with connection.makefile("rb") as reader:
                    said = reader.read()
                assert said.startswith(b"HTTP/1.1 503") and b'"draining"' in said
        until(lambda: server.service.open.count == server.service.open.bytes == 0)


def test_what_is_open_ends_before_the_server_stops(server: Running) -> None:
    with tiny_engine() as engine:
        with serving(engine, limits={"drain_timeout": 20.0}) as own:
            url, body = f"{own.url}/v1/completions", {**LONG, "max_tokens": 60}
            with httpx2.stream("POST", url, json=body, headers=HEADERS) as stream:
                lines = stream.iter_lines()
                next(lines)
                own.server.stop()
                said = list(lines)
        assert said[-2] == "data: [DONE]"
        with pytest.raises(httpx2.ConnectError):
            httpx2.post(url, json=body, headers=HEADERS)


def test_what_does_not_end_in_time_is_told(server: Running) -> None:
    with tiny_engine() as engine, serving(engine, limits={"drain_timeout": 1.0}) as own:
        url, body = f"{own.url}/v1/completions", {**LONG, "max_tokens": 3900}
        with httpx2.stream("POST", url, json=body, headers=HEADERS) as stream:
            lines = stream.iter_lines()
            next(lines)
            own.server.stop()
            said = [line for line in lines if line]
    assert json.loads(said[-1].removeprefix("data: "))["error"]["code"] == "draining"


def test_a_server_that_drains_takes_no_calls(engine: Engine) -> None:
    app = make_app(engine, ServerConfig(names=("tiny",)))
    app.state.service.life.state = "draining"
    from starlette.testclient import TestClient

    with TestClient(app, base_url="http://127.0.0.1") as client:
        app.state.service.life.state = "draining"
        reply = client.post("/v1/completions", json={"prompt": "a"})
        assert reply.status_code == 503 and reply.json()["error"]["code"] == "draining"
        assert reply.headers["retry-after"] and client.get("/version").status_code == 200
