"""A tiny OpenAI-compatible server, and a program that talks to it through the SDK."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

WORDS = ("I ", "wave ", "hello.")
USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 4,
    "total_tokens": 104,
    "prompt_tokens_details": {"cached_tokens": 64},
}
TOOL_CALL = {"id": "c1", "type": "function", "function": {"name": "go", "arguments": '{"to":1}'}}


@dataclass
class Upstream:
    """The server; ``bodies`` and ``headers`` are what it was sent, ``refuse`` how many calls it
    refuses first."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    refuse: int = 0
    counts: dict[str, float] | None = None  # of a plug-in, which each call moves on

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/completions", self.complete, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/v1/agents/hints", self.take_hints, methods=["POST"]),
                Route("/scalesim/stats", self.stats),
            ]
        )

    async def models(self, request: Request) -> Response:
        data = [{"id": "m", "object": "model", "created": 1, "owned_by": "tests"}]
        return JSONResponse({"object": "list", "data": data, "query": str(request.query_params)})

    async def stats(self, request: Request) -> Response:
        if self.counts is None:
            return JSONResponse({"detail": "Not Found"}, 404)
        return JSONResponse(self.counts)

    async def take_hints(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        return JSONResponse({"accepted": 1})

    async def complete(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        choice = {"index": 0, "finish_reason": "stop", "text": "".join(WORDS)}
        return JSONResponse({"object": "text_completion", "choices": [choice], "usage": USAGE})

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        if self.refuse:
            self.refuse -= 1
            error = {"message": "full", "type": "rate_limit", "param": None, "code": None}
            return JSONResponse({"error": error}, 429, {"retry-after-ms": "1"})
        if body.get("stream"):
            self._count()
            return StreamingResponse(_events(body), media_type="text/event-stream")
        self._count()
        message: dict[str, Any] = {"role": "assistant", "content": "".join(WORDS)}
        if body.get("tools"):
            message = {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return JSONResponse(
            {
                "id": "x",
                "object": "chat.completion",
                "created": 1,
                "model": "m",
                "choices": [choice],
                "usage": USAGE,
            },
            headers={"x-request-id": "r1"},
        )

    def _count(self) -> None:
        """A prompt of 100 tokens, of which 40 were on the device and 24 on the host."""
        if self.counts is not None:
            for name, tokens in (("prompt", 100), ("device_hit", 40), ("host_hit", 24)):
                self.counts[f"{name}_tokens"] += tokens


async def _events(body: dict[str, Any]) -> AsyncIterator[str]:
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    for word in WORDS:
        yield _event(head | {"choices": [{"index": 0, "delta": {"content": word}}]})
    if (body.get("stream_options") or {}).get("include_usage"):
        yield _event(head | {"choices": [], "usage": USAGE})
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


PROGRAM = """
import openai, sys
client = openai.OpenAI(max_retries=2)
town = "The town has a mill, a school and a pier. " * 20
chats = {
    f"a{i}": [
        {"role": "system", "content": town},
        {"role": "user", "content": f"You are a{i}. " * 30},
    ]
    for i in range(6)
}
for tick in range(5):
    for i, (agent, chat) in enumerate(chats.items()):
        chat.append({"role": "user", "content": f"It is tick {tick}."})
        said = client.chat.completions.create(
            model="m", messages=chat, stream=i % 2 == 0, user=agent
        )
        text = (
            "".join(chunk.choices[0].delta.content for chunk in said)
            if i % 2 == 0
            else said.choices[0].message.content
        )
        assert text == "I wave hello.", text
        chat.append({"role": "assistant", "content": text})
print("the program's own words")
sys.exit(3)
"""
