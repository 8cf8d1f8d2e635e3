"""The client against a real server on a loopback port: the engine's names, over HTTP."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx2
import pytest

from scalesim import errors
from scalesim.client import AsyncClient, Client
from scalesim.engine.engine import Engine
from tests.engine.world import tiny_engine
from tests.server.world import KEY, PATIENCE_S, Running, serving

SHORT = {"max_tokens": 4, "seed": 1}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with tiny_engine() as made:
        yield made


@pytest.fixture(scope="module")
def running(engine: Engine) -> Iterator[Running]:
    with serving(engine) as server:
        yield server


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    with Client(running.url, api_key=KEY) as made:
        yield made


def in_loop(running: Running, play: Callable[[AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with AsyncClient(f"{running.url}/v1", api_key=KEY) as client:
            await play(client)

    asyncio.run(main())


def test_a_client_needs_no_torch() -> None:
    code = (
        "import sys, scalesim.client; scalesim.client.Client; "
        "print(sorted({'torch', 'triton', 'starlette', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_calls(client: Client, engine: Engine) -> None:
    ada = client.agent("ada")
    reply = ada.generate("Once upon a time", **SHORT)
    assert reply.text == engine.agent("twin").generate("Once upon a time", **SHORT).text
    assert (reply.agent, reply.finish_reason, reply.hint_used) == ("ada", "length", False)
    assert reply.usage.output_tokens == 4
    chat = ada.chat("Good morning!", next_call_in=3, **SHORT)
    assert chat.message == {"role": "assistant", "content": chat.content} and chat.hint_used
    assert client.chat([{"role": "user", "content": "Good morning!"}], **SHORT).agent is None
    two = client.generate([1, 2, 3], n=2, **SHORT)
    assert len(two.samples) == 2
    ada.generate("Once upon a time" * 3, **SHORT)
    assert ada.generate("Once upon a time" * 3, **SHORT).usage.cached_tokens > 0


def test_streams(client: Client) -> None:
    ada = client.agent("ada")
    for prompt in ("Once upon a time", [{"role": "user", "content": "hi"}]):
        whole = ada.generate(prompt, **SHORT)
        with ada.stream(prompt, **SHORT) as stream:
            texts = [piece.text for piece in stream]
        assert stream.reply is not None and stream.reply.usage.output_tokens == 4
        assert "".join(texts) == stream.reply.text == whole.text
        assert stream.reply.agent == "ada"


def test_who_stops_reading_cancels(client: Client, engine: Engine) -> None:
    with client.agent("ada").stream("Once", max_tokens=2000, ignore_eos=True) as stream:
        next(stream)
    while engine.memory.view("ada").open_calls:
        pass  # each look is a step of the engine's


def test_hints_time_and_agents(client: Client) -> None:
    client.agent("bob").generate("x" * 100, **SHORT)
    start = client.tick()
    client.expect({"bob": 2, "cy": 5}, confidence=0.5)
    client.expect("dee", at=start + 7)
    assert client.tick(to=start + 1) == start + 1
    assert client.view("bob")["next_use"] == start + 2
    assert client.view("dee")["next_use"] == start + 7
    client.wake("dee")
    client.agent("bob").expect(3)
    client.flush()
    assert client.view("dee")["next_use"] == start + 1 == client.view("bob")["next_use"] - 3
    twin = client.agent("bob").fork("twin of bob")
    client.pin(twin.id, 60)
    assert client.view(twin.id)["pinned_seconds"] > 50
    client.release(twin.id)
    twin.forget()
    assert client.forget(["bob", "cy", "nobody"]) == 2
    with pytest.raises(errors.UnknownAgentError, match="'bob' is unknown"):
        client.view("bob")


def test_why(client: Client) -> None:
    fay = client.agent("fay")
    for text in ("x" * 200, "x" * 210):
        fay.generate(text, **SHORT)
    assert client.why("fay") is None
    fay.generate("y" * 200, **SHORT)
    assert "prompt changed at token" in str(client.why("fay"))


def test_choose(client: Client, engine: Engine) -> None:
    options = ["yes", "no", "perhaps"]
    choice = client.agent("ada").choose("Is it?", options, by="mean")
    own = engine.agent("ada").choose("Is it?", options, by="mean")
    assert (choice.option, choice.index) == (own.option, own.index)
    assert choice.scores == pytest.approx([score.logprob for score in own.scores], abs=1e-4)
    with pytest.raises(errors.RequestError, match="options"):
        client.agent("ada").choose("Is it?", [])


def test_the_same_in_an_event_loop(running: Running, engine: Engine) -> None:
    async def play(client: AsyncClient) -> None:
        ada = client.agent("ada")
        replies = await asyncio.gather(*(ada.generate("Once", **SHORT) for _ in range(20)))
        whole = engine.agent("twin").generate("Once", **SHORT).text
        assert {reply.text for reply in replies} == {whole}
        assert (await ada.chat("hi", **SHORT)).agent == "ada"
        async with ada.stream("Once", **SHORT) as stream:
            assert "".join([piece.text async for piece in stream]) == whole
        assert stream.reply is not None and stream.reply.finish_reason == "length"
        start = await client.tick()
        client.expect({"ada": 4})
        client.wake("eve")
        await client.flush()
        assert (await client.view("ada"))["next_use"] == start + 4
        assert (await client.view("eve"))["next_use"] == start
        child = await ada.fork("child of ada")
        child.expect(at=start + 9)
        await client.pin(child.id, 9)
        await client.release(child.id)
        await child.forget()
        assert await client.forget("eve") == 1
        assert (await ada.choose("Is it?", ["yes", "no"])).index in (0, 1)
        assert (await client.generate([1, 2], **SHORT)).usage.prompt_tokens == 2
        assert (await client.chat("hi", **SHORT)).agent is None

    in_loop(running, play)


# -- errors ------------------------------------------------------------------------------------


def test_errors_are_the_engines(client: Client, running: Running) -> None:
    ada = client.agent("ada")
    with pytest.raises(errors.PromptTooLongError):
        ada.generate("x" * 5000, **SHORT)
    with pytest.raises(errors.RequestError, match="temperature=-1"):
        ada.generate("hi", temperature=-1)
    with pytest.raises(errors.AdapterError, match="model 'none' is not served"):
        client.agent("ada", adapter="none").generate("hi")
    with pytest.raises(errors.RequestTimeoutError):
        ada.generate("hi", timeout=1e-6, max_tokens=500, ignore_eos=True)
    stranger = Client(running.url, api_key="not-the-key")
    with stranger, pytest.raises(errors.ConfigError, match="no key that this server knows"):
        stranger.generate("hi")
    nowhere = Client("http://127.0.0.1:9", max_retries=0)
    with nowhere, pytest.raises(errors.EngineClosedError, match="no server answers at"):
        nowhere.generate("hi")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "", 7])
def test_an_address_that_is_none(url: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALESIM_URL", "localhost")
    with pytest.raises(errors.ConfigError, match="base_url="):
        Client(url)


# -- against a server of the test's own --------------------------------------------------------


class Server:
    """Answers as it is told, and keeps what it was asked."""

    def __init__(self, *answers: httpx2.Response) -> None:
        self.answers, self.asked = list(answers), list[tuple[str, Any]]()
        self.opens = threading.Event()
        self.opens.set()
        self.got_one = threading.Event()

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content) if request.content else None
        self.asked.append((request.url.path, body))
        self.got_one.set()
        assert self.opens.wait(PATIENCE_S)
        return self.answers.pop(0) if self.answers else httpx2.Response(200, json={"tick": 1.0})


def client_of(server: Server, **options: Any) -> Client:
    return Client("http://test", transport=httpx2.MockTransport(server), **options)


def test_a_thousand_hints_are_few_requests() -> None:
    server = Server()
    server.opens.clear()
    with client_of(server) as client:
        client.expect("first", 1)
        assert server.got_one.wait(PATIENCE_S)
        for index in range(1000):
            client.expect(f"agent {index % 500}", index)
        server.opens.set()
        client.tick()
    paths = [path for path, _ in server.asked]
    assert paths == ["/v1/agents/hints", "/v1/agents/hints", "/v1/sim/tick"]
    assert server.asked[1][1]["in"]["agent 3"] == 503.0 and len(server.asked[1][1]["in"]) == 500


def test_hints_that_cannot_be_sent_end_nothing(caplog: pytest.LogCaptureFixture) -> None:
    refused = httpx2.Response(400, json={"error": {"message": "no such thing", "code": None}})
    server = Server(refused)
    with client_of(server) as client:
        client.expect("ada", 1)
        assert server.got_one.wait(PATIENCE_S)
        assert client.tick() == 1.0
    assert "hints were lost" in caplog.text and "no such thing" in caplog.text


def test_a_full_server_is_asked_again() -> None:
    full = {"status_code": 429, "headers": {"retry-after": "0"}, "json": {}}
    server = Server(httpx2.Response(**full), httpx2.Response(**full))  # type: ignore[arg-type]
    with client_of(server) as client:
        assert client.tick() == 1.0
    server = Server(*(httpx2.Response(**full) for _ in range(3)))  # type: ignore[arg-type]
    with client_of(server) as client, pytest.raises(errors.EngineFullError):
        client.tick()
    assert len(server.asked) == 3


def test_tools_and_thinking_are_read() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "go", "arguments": "{}"}}
    message = {"content": None, "reasoning_content": "Hm.", "tool_calls": [call]}
    answer = {"choices": [{"message": message, "finish_reason": "tool_calls"}]}
    with client_of(Server(httpx2.Response(200, json=answer))) as client:
        reply = client.chat("hi")
    assert reply.message == {"role": "assistant", **message}
    chunks = [
        '{"choices":[{"index":0,"delta":{"role":"assistant","reasoning_content":"Hm."}}]}',
        '{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_1","function":'
        '{"name":"go","arguments":"{"}}]}}]}',
        '{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"}"}}]},'
        '"finish_reason":"tool_calls"}]}',
        "[DONE]",
    ]
    events = "".join(f": waiting\n\ndata: {chunk}\n\n" for chunk in chunks)
    with client_of(Server(httpx2.Response(200, text=events))) as client:
        pieces = list(client.agent("ada").stream([{"role": "user", "content": "hi"}]))
    assert pieces[0].reasoning == "Hm." and pieces[-1].reply == reply


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('data: {"error": {"message": "out of time", "code": "deadline_exceeded"}}\n\n', "out of"),
        ('data: {"choices": []}\n\n', "broke off"),
    ],
)
def test_a_stream_that_fails_says_so(text: str, said: str) -> None:
    client = client_of(Server(httpx2.Response(200, text=text)))
    with client, pytest.raises(errors.ScaleSimError, match=said):
        list(client.agent("ada").stream("hi"))


def test_what_is_refused_before_it_is_sent(client: Client) -> None:
    for wrong in (
        lambda: client.expect("ada"),
        lambda: client.expect({"ada": 1}, 3),
        lambda: client.expect("ada", float("nan")),
        lambda: client.expect("ada", 1, confidence=2),
        lambda: client.tick(0),
        lambda: client.tick(2, to=3),
        lambda: client.agent(""),
        lambda: client.agent(1.5),  # type: ignore[arg-type]
        lambda: client.forget(1.5),
        lambda: client.chat([1, 2]),  # type: ignore[list-item]
    ):
        with pytest.raises(errors.RequestError):
            wrong()
