"""The proxy against a small server: what passes is unchanged, and what was called is on record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from scalesim.proxy.app import make_proxy
from scalesim.proxy.recording import Recording
from tests.proxy.upstream import TOOL_CALL, USAGE, WORDS, Upstream

CHAT = [{"role": "system", "content": "You are Ada."}, {"role": "user", "content": "Hello."}]
KEY = "sk-secret-of-the-user"


@asynccontextmanager
async def proxied(
    recording: Recording, upstream: Upstream | None
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the proxy; without an upstream, nobody listens there."""
    transport = httpx2.ASGITransport(upstream.app()) if upstream else None
    url = "http://up/v1" if upstream else "http://127.0.0.1:9/v1"
    app = make_proxy(url, recording, httpx2.AsyncClient(transport=transport))
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://proxy") as client,
    ):
        yield client


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    return Recording(tmp_path / "calls.jsonl")


def through(
    recording: Recording,
    upstream: Upstream | None,
    talk: Callable[[httpx2.AsyncClient], Awaitable[Any]],
) -> Any:
    async def all_of_it() -> Any:
        async with proxied(recording, upstream) as client:
            return await talk(client)

    try:
        return asyncio.run(all_of_it())
    finally:
        recording.close()


def sdk(client: httpx2.AsyncClient, path: str = "/v1") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://proxy{path}", api_key=KEY, http_client=client)


def test_the_sdk_sees_what_the_server_says(recording: Recording) -> None:
    upstream = Upstream()

    async def talk(client: httpx2.AsyncClient) -> None:
        chat = sdk(client).chat.completions
        whole = await chat.create(model="m", messages=CHAT, user="ada", seed=3)
        assert whole.choices[0].message.content == "".join(WORDS)
        assert whole.usage is not None and whole.usage.prompt_tokens_details is not None
        assert whole.usage.prompt_tokens_details.cached_tokens == 64
        stream = await chat.create(
            model="m", messages=CHAT, stream=True, stream_options={"include_usage": True},
            extra_body={"agent_id": "ada"},
        )  # fmt: skip
        chunks = [chunk async for chunk in stream]
        assert [chunk.choices[0].delta.content for chunk in chunks if chunk.choices] == [*WORDS]
        tools: Any = [{"type": "function", "function": {"name": "go"}}]
        called = await chat.create(
            model="m", messages=CHAT, tools=tools, extra_headers={"X-Session-ID": "bob"}
        )
        calls = called.choices[0].message.tool_calls
        assert calls is not None and calls[0].id == TOOL_CALL["id"]
        legacy = await sdk(client).completions.create(model="m", prompt="Once", user="ada")
        assert legacy.choices[0].text == "".join(WORDS)

    through(recording, upstream, talk)
    assert upstream.bodies[0] == {"model": "m", "messages": CHAT, "user": "ada", "seed": 3}
    assert upstream.headers[0]["authorization"] == f"Bearer {KEY}"
    assert upstream.headers[0]["host"] == "up"
    ada, streamed, tool, text = recording.calls
    assert [call.agent for call in recording.calls] == ["ada", "ada", "bob", "ada"]
    assert [call.rung for call in recording.calls[:3]] == ["user", "agent_id", "X-Session-ID"]
    assert all(call.is_ok and call.cached_tokens == 64 for call in recording.calls)
    assert ada.prompt_tokens == USAGE["prompt_tokens"] and streamed.output_tokens == 4
    assert ada.digest == streamed.digest != tool.digest != text.digest
    for call in recording.calls:
        assert call.first_s is not None and call.end_s is not None
        assert call.start_s <= call.first_s <= call.end_s
    assert sum(len(tick.calls) for tick in recording.ticks()) == 4


def test_no_text_and_no_key_is_kept(recording: Recording, tmp_path: Path) -> None:
    async def talk(client: httpx2.AsyncClient) -> None:
        await sdk(client).chat.completions.create(model="m", messages=CHAT)

    through(recording, Upstream(), talk)
    kept = (tmp_path / "calls.jsonl").read_text() + repr(recording.calls)
    for word in (KEY, "Ada", "Hello", "wave"):
        assert word not in kept


def test_the_base_url_can_name_the_agent(recording: Recording) -> None:
    async def talk(client: httpx2.AsyncClient) -> None:
        await sdk(client, "/agents/ada/v1").chat.completions.create(model="m", messages=CHAT)

    upstream = Upstream()
    through(recording, upstream, talk)
    assert [(call.agent, call.rung) for call in recording.calls] == [("ada", "path")]
    assert upstream.headers[0]["x-scalesim-agent"] == "ada"  # for servers that know agents


def test_what_is_no_call_passes_and_is_not_recorded(recording: Recording) -> None:
    async def talk(client: httpx2.AsyncClient) -> None:
        answer = await client.get("/v1/models", params={"limit": "3"})
        assert answer.json()["query"] == "limit=3"
        assert (await client.get("/v1/nothing")).status_code == 404
        assert (await client.get("/elsewhere")).status_code == 404
        assert (await client.post("/v1/chat/completions", content=b"{")).status_code == 500

    with pytest.raises(ValueError):  # the small server's own, on what is no JSON
        through(recording, Upstream(), talk)
    assert recording.calls == []


def test_failures_are_the_servers_own(recording: Recording) -> None:
    async def talk(client: httpx2.AsyncClient) -> None:
        reply = await sdk(client).chat.completions.create(model="m", messages=CHAT, user="ada")
        assert reply.choices[0].message.content == "".join(WORDS)

    through(recording, Upstream(refuse=2), talk)
    assert [call.status for call in recording.calls] == [429, 429, 200]
    assert sum(len(tick.calls) for tick in recording.ticks()) == 1


def test_a_server_that_is_not_there(recording: Recording) -> None:
    async def talk(client: httpx2.AsyncClient) -> None:
        answer = await client.post(
            "/v1/chat/completions", json={"messages": CHAT}, headers={"authorization": KEY}
        )
        assert answer.status_code == 502
        error = answer.json()["error"]
        assert "http://127.0.0.1:9/v1 cannot be reached" in error["message"]
        assert KEY not in answer.text and error["type"] == "proxy_error"

    through(recording, None, talk)
    assert [call.status for call in recording.calls] == [502]


def test_a_name_that_is_none_is_the_servers_to_refuse(recording: Recording) -> None:
    async def talk(client: httpx2.AsyncClient) -> None:
        body = {"model": "m", "messages": CHAT, "agent_id": ["no", "name"]}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200

    through(recording, Upstream(), talk)
    assert [(call.agent, call.rung) for call in recording.calls] == [(None, "none")]


def test_ticks_are_the_programs_where_it_says_them(recording: Recording) -> None:
    async def talk(client: httpx2.AsyncClient) -> None:
        for tick in (4, 4, 5, 9):
            for agent in ("ada", "bob"):
                body = {"model": "m", "messages": CHAT, "agent_id": agent, "sim_tick": tick}
                await client.post("/v1/chat/completions", json=body)
        await client.post("/v1/sim/tick", json={"n": 2})
        await client.post("/v1/chat/completions", json={"messages": CHAT, "user": "ada"})

    through(recording, Upstream(), talk)
    ticks = recording.ticks()
    assert [(tick.time, len(tick.calls)) for tick in ticks] == [
        (4.0, 4), (5.0, 2), (9.0, 2), (11.0, 1),
    ]  # fmt: skip
    assert max(call.round for call in ticks[0].calls) == 1


def test_a_body_that_is_too_long(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalesim.proxy.app.MAX_BODY_BYTES", 1000)

    async def talk(client: httpx2.AsyncClient) -> None:
        answer = await client.post("/v1/chat/completions", content=b"x" * 1001)
        assert answer.status_code == 413 and "1000 bytes" in answer.json()["error"]["message"]

    through(recording, Upstream(), talk)


@pytest.mark.parametrize(("ending", "status"), [("data: [DONE]\n\n", 200), ("", 499)])
def test_a_program_that_leaves(recording: Recording, ending: str, status: int) -> None:
    """It may have read everything: then the call is a call like any other."""
    import json

    from starlette.applications import Starlette
    from starlette.responses import StreamingResponse
    from starlette.routing import Route

    has_left = asyncio.Event()

    async def endless(request: Any) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            chunk = {"choices": [{"index": 0, "delta": {"content": "I wave."}}]}
            yield f"data: {json.dumps(chunk)}\n\n{ending}"
            await asyncio.Event().wait()

        return StreamingResponse(events(), media_type="text/event-stream")

    async def talk() -> None:
        app = make_proxy("http://up/v1", recording, client_of(endless))
        scope = {
            "type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [],
            "query_string": b"", "asgi": {"version": "3.0", "spec_version": "2.3"},
        }  # fmt: skip
        bodies = iter([{"type": "http.request", "body": b'{"messages": []}'}])

        async def receive() -> Any:
            if (message := next(bodies, None)) is not None:
                return message
            await has_left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if b"wave" in message.get("body", b""):
                has_left.set()

        await app(scope, receive, send)

    def client_of(handler: Any) -> httpx2.AsyncClient:
        upstream = Starlette(routes=[Route("/v1/chat/completions", handler, methods=["POST"])])
        return httpx2.AsyncClient(transport=Piecewise(upstream))

    asyncio.run(talk())
    recording.close()
    assert [call.status for call in recording.calls] == [status]


class Piecewise(httpx2.AsyncBaseTransport):
    """Gives an app's answer piece by piece; ``ASGITransport`` waits for its end."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        pieces: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        body = await request.aread()
        scope = {
            "type": "http", "method": request.method, "path": request.url.path, "headers": [],
            "query_string": b"", "asgi": {"version": "3.0", "spec_version": "2.4"},
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        task = asyncio.create_task(self._app(scope, receive, pieces.put))
        head = await pieces.get()

        class Stream(httpx2.AsyncByteStream):
            async def __aiter__(self) -> AsyncIterator[bytes]:
                while True:
                    yield (await pieces.get()).get("body", b"")

            async def aclose(self) -> None:
                task.cancel()

        return httpx2.Response(head["status"], headers=head["headers"], stream=Stream())
