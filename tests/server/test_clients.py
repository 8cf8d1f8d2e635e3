"""litellm and LangChain's ChatOpenAI, unmodified: ``nox -s clients`` has them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.world import tiny_engine
from tests.server.test_tools import TEMPLATE, Move
from tests.server.world import KEY, Running, serving

pytestmark = [pytest.mark.filterwarnings("ignore")]  # theirs
CHAT: list[Any] = [{"role": "user", "content": "go"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with tiny_engine(chat_template=TEMPLATE) as engine, serving(engine) as found:
        yield found


def test_litellm(server: Running) -> None:
    litellm = pytest.importorskip("litellm")
    given = {
        "model": "openai/tiny", "api_base": f"{server.url}/v1", "api_key": KEY, "messages": CHAT,
        "max_tokens": 6, "seed": 1,
    }  # fmt: skip
    reply = litellm.completion(**given, extra_body={"agent_id": "ada", "ignore_eos": True})
    assert reply.usage.completion_tokens == 6 and reply.choices[0].finish_reason == "length"
    assert reply.usage.prompt_tokens_details.cached_tokens is not None
    pieces = list(litellm.completion(**given, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)

    async def ask_all() -> list[Any]:
        return await asyncio.gather(*(litellm.acompletion(**given) for _ in range(8)))

    assert len(asyncio.run(ask_all())) == 8
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(**given, temperature=-1)
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**{**given, "api_key": "another-key"})


def test_langchain(server: Running) -> None:
    pytest.importorskip("langchain_openai")
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        model="tiny", base_url=f"{server.url}/v1", api_key=KEY, max_tokens=300, seed=3,
        extra_body={"session_id": "ada"},
    )  # fmt: skip
    answer = model.invoke([("system", "You are Ada."), ("user", "go")])
    assert answer.usage_metadata["output_tokens"] > 0
    assert "".join(piece.content for piece in model.stream("go"))

    def walk(place: str) -> str:
        """Walk to a place."""
        return place

    called = model.bind_tools([walk], tool_choice="walk").invoke("go")
    assert called.tool_calls == [] or called.tool_calls[0]["name"] == "walk"
    structured = model.with_structured_output(Move, method="json_schema")
    assert isinstance(structured.invoke("go"), Move)
