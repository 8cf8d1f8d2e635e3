"""The OpenAI SDK as it is, against a server on a loopback port."""

from __future__ import annotations

import openai
import pytest

from tests.server.world import Running


@pytest.fixture(scope="module")
def client(running: Running) -> openai.OpenAI:
    return running.client()


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=8
    )
    print(reply)
    assert reply.choices[0].message.role == "assistant"


def test_a_chat_is_streamed(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == [] and chunks[-1].usage


def test_completion(client: openai.OpenAI) -> None:
    print(client.completions.create(model="tiny", prompt="once", max_tokens=5, n=2))
    assert len(
        list(client.completions.create(model="tiny", prompt="once", max_tokens=5, n=2, stream=True))
    )
    assert [model.id for model in client.models.list()] == ["tiny"]
