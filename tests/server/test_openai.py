"""The OpenAI SDK as it is, against a server on a loopback port."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import httpx2
import openai
import pytest

from scalesim.engine.engine import Engine
from tests.server.world import KEY, Running, serving

CHAT: list[Any] = [
    {"role": "system", "content": "You are Ada."},
    {"role": "user", "content": "Where is the mill?"},
]
ASKED: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 8,
    "seed": 1,
    "extra_body": {"ignore_eos": True},
}


@pytest.fixture(scope="module")
def client(running: Running) -> openai.OpenAI:
    return running.client()


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(messages=CHAT, **ASKED)
    [choice] = reply.choices
    assert reply.object == "chat.completion" and reply.model == "tiny" and reply.id
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason == "length" and choice.logprobs is None
    assert reply.usage is not None and reply.usage.completion_tokens == 8
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 8


def test_a_reply_has_the_id_of_its_request(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(messages=CHAT, **ASKED)
    assert (raw.request_id or "").startswith("req_")


def test_what_was_in_memory_is_told(client: openai.OpenAI) -> None:
    chat = [{"role": "user", "content": "a prompt that nobody else sends " * 4}]
    for _ in range(2):
        reply = client.chat.completions.create(messages=chat, **ASKED)  # type: ignore[arg-type]
    assert reply.usage and reply.usage.prompt_tokens_details
    assert (reply.usage.prompt_tokens_details.cached_tokens or 0) > 100


def test_a_chat_is_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=CHAT, **ASKED)
    chunks = list(client.chat.completions.create(messages=CHAT, stream=True, **ASKED))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert text_of(chunks) == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons[-1] == "length" and set(reasons[:-1]) == {None}
    assert len({chunk.id for chunk in chunks}) == 1 and all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_its_usage_and_done(client: openai.OpenAI, running: Running) -> None:
    chunks = list(
        client.chat.completions.create(
            messages=CHAT, stream=True, stream_options={"include_usage": True}, **ASKED
        )
    )
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8
    body = {"messages": CHAT, "max_tokens": 3, "stream": True}
    raw = httpx2.post(
        f"{running.url}/v1/chat/completions",
        json=body,
        headers={"authorization": f"Bearer {KEY}"},
    )
    assert raw.headers["content-type"].startswith("text/event-stream")
    events = raw.text.split("\n\n")
    assert events[-1] == "" and events[-2] == "data: [DONE]"
    assert all(event.startswith("data: {") for event in events[:-2])
    assert json.loads(events[0][6:])["choices"][0]["delta"] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize("stream", [False, True])
def test_samples_differ_and_are_counted(client: openai.OpenAI, stream: bool) -> None:
    asked = {**ASKED, "n": 3, "messages": CHAT}
    if not stream:
        reply = client.chat.completions.create(**asked)
        texts = [choice.message.content for choice in reply.choices]
        assert reply.usage and reply.usage.completion_tokens == 24
    else:
        chunks = list(
            client.chat.completions.create(
                **asked, stream=True, stream_options={"include_usage": True}
            )
        )
        parts: dict[int, str] = {}
        for chunk in chunks[:-1]:
            [choice] = chunk.choices
            parts[choice.index] = parts.get(choice.index, "") + (choice.delta.content or "")
        texts = [parts[index] for index in sorted(parts)]
        assert chunks[-1].usage and chunks[-1].usage.completion_tokens == 24
    assert len(texts) == len(set(texts)) == 3
    again = client.chat.completions.create(**asked)
    assert [choice.message.content for choice in again.choices] == texts


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(client: openai.OpenAI, stream: bool) -> None:
    asked = {**ASKED, "logprobs": True, "top_logprobs": 3, "messages": CHAT}
    if stream:
        chunks = client.chat.completions.create(**asked, stream=True)
        found = [chunk.choices[0].logprobs for chunk in chunks]
        content = [token for scores in found if scores for token in scores.content or []]
    else:
        scores = client.chat.completions.create(**asked).choices[0].logprobs
        content = list(scores.content or []) if scores else []
    assert len(content) == 8
    for token in content:
        assert token.logprob <= 0.0 and len(token.top_logprobs) == 3
        assert bytes(token.bytes or []).decode() == token.token
        near = [likely.logprob for likely in token.top_logprobs]
        assert near == sorted(near, reverse=True) and near[0] >= token.logprob


def test_a_seed_gives_the_same_text_and_others_another(client: openai.OpenAI) -> None:
    def say(**changes: Any) -> str | None:
        reply = client.chat.completions.create(messages=CHAT, **{**ASKED, **changes})
        return reply.choices[0].message.content

    assert say() == say()
    assert len({say(seed=seed) for seed in range(4)}) > 1
    assert say(temperature=0) == say(temperature=0, seed=5)


def test_penalties_biases_and_both_names_of_max_tokens(client: openai.OpenAI) -> None:
    asked = {**ASKED, "temperature": 0, "messages": CHAT}
    only = client.chat.completions.create(
        **asked, logit_bias={"97": 100}, presence_penalty=0.5, frequency_penalty=-0.5, top_p=0.9
    )
    assert only.choices[0].message.content == "a" * 8
    del asked["max_tokens"]
    short = client.chat.completions.create(**asked, max_completion_tokens=2)
    assert short.usage and short.usage.completion_tokens == 2


@pytest.mark.parametrize("stop", ["aaaa", ["zzz", "aaaa"]])
def test_stop_strings(client: openai.OpenAI, stop: Any) -> None:
    asked = {**ASKED, "logit_bias": {"97": 100}, "stop": stop}
    reply = client.chat.completions.create(messages=CHAT, **asked)
    assert reply.choices[0].finish_reason == "stop" and reply.choices[0].message.content in (
        None,
        "",
    )
    streamed = client.completions.create(prompt="b", stream=True, **{**asked, "stop": "b"})
    assert "".join(chunk.choices[0].text for chunk in streamed) == "a" * 8


def test_a_chat_without_max_tokens_has_all_the_room(client: openai.OpenAI, engine: Engine) -> None:
    long = "x" * (engine.model.max_len - 60)
    reply = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": long}], extra_body={"ignore_eos": True}
    )
    assert reply.usage and reply.usage.total_tokens == engine.model.max_len


def test_completions(client: openai.OpenAI) -> None:
    reply = client.completions.create(prompt=["once", "upon"], n=2, **ASKED)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.object == "text_completion" and reply.usage
    assert reply.usage.completion_tokens == 32 and reply.usage.prompt_tokens == 10
    ids = client.completions.create(prompt=[111, 110, 99, 101], **ASKED)
    assert ids.usage and ids.usage.prompt_tokens == 4
    chunks = list(
        client.completions.create(
            prompt=["once", "upon"],
            n=2,
            stream=True,
            stream_options={"include_usage": True},
            **ASKED,
        )
    )
    texts = ["", "", "", ""]
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in reply.choices]
    assert chunks[-1].usage and chunks[-1].usage.total_tokens == 42


def test_completions_have_log_probabilities(client: openai.OpenAI) -> None:
    reply = client.completions.create(prompt="once", logprobs=2, **ASKED)
    scores = reply.choices[0].logprobs
    assert scores and len(scores.tokens or []) == len(scores.token_logprobs or []) == 8
    assert all(1 <= len(near) <= 2 for near in scores.top_logprobs or [])  # one text of two tokens
    assert (scores.text_offset or [])[0] == 0
    streamed = list(client.completions.create(prompt="once", logprobs=2, stream=True, **ASKED))
    values = [
        value
        for chunk in streamed
        if chunk.choices[0].logprobs
        for value in chunk.choices[0].logprobs.token_logprobs or []
    ]
    assert values == scores.token_logprobs


def test_a_prompt_is_scored_by_echo(client: openai.OpenAI) -> None:
    """What evaluation harnesses do: no new token, the prompt's own log-probabilities."""
    reply = client.completions.create(
        model="tiny", prompt="once", max_tokens=0, echo=True, logprobs=1
    )
    [choice] = reply.choices
    assert choice.text == "once" and choice.logprobs
    scores = choice.logprobs.token_logprobs or []
    assert scores[0] is None and len(scores) == 5  # the first one is the tokenizer's <|bos|>
    assert all(math.isfinite(score) and score < 0 for score in scores[1:])


@pytest.mark.parametrize("n", [1, 2])
def test_an_echo_is_streamed_first(client: openai.OpenAI, n: int) -> None:
    asked: dict[str, Any] = {**ASKED, "prompt": ["a mill", "two piers"], "echo": True, "n": n}
    whole = client.completions.create(**asked)
    texts = [""] * 2 * n
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert texts[0].startswith("a mill") and texts[-1].startswith("two piers")
    with pytest.raises(openai.BadRequestError, match="echo with logprobs is not streamed"):
        client.completions.create(**asked, stream=True, logprobs=1)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "scalesim"
    with pytest.raises(openai.NotFoundError, match="model 'gpt-9' is not served"):
        client.models.retrieve("gpt-9")


def test_embeddings(engine: Engine) -> None:
    with serving(engine, embeddings=True) as server:
        client = server.client()
        found = client.embeddings.create(model="tiny", input=["a mill", "a pier"])
        plain = client.embeddings.create(
            model="tiny", input="a mill", encoding_format="float", extra_body={"pooling": "last"}
        )
    assert len(found.data) == 2 and found.usage.total_tokens == 14
    assert sum(x * x for x in found.data[0].embedding) == pytest.approx(1.0, abs=1e-4)
    assert found.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)


def test_errors_are_the_sdks_own(client: openai.OpenAI, running: Running) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(messages=CHAT, model="tiny", temperature=-1)
    assert refused.value.param == "temperature" and "temperature=-1" in str(refused.value)
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(messages=CHAT, model="gpt-9")
    assert unknown.value.code == "model_not_found" and unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt="x" * 9000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        running.client(api_key="another").models.list()


def test_a_full_queue_is_tried_again(engine: Engine) -> None:
    """The SDK waits as Retry-After says, and gets its answer."""
    with serving(engine, limits={"max_open_requests": 1}) as server:
        with server.service.open:
            with pytest.raises(openai.RateLimitError, match="1 requests are open") as refused:
                server.client(max_retries=0).completions.create(prompt="a", **ASKED)
            assert refused.value.response.headers["retry-after"] == "1"
            assert refused.value.code == "queue_full"
        place = server.service.open
        place.__enter__()

        def leave(response: httpx2.Response) -> None:
            if response.status_code == 429:
                place.__exit__()

        with httpx2.Client(event_hooks={"response": [leave]}) as http:
            client = server.client(http_client=http)
            assert client.completions.create(prompt="a", **ASKED).choices
        assert server.service.open.refused == 2


def test_many_calls_at_once(running: Running) -> None:
    """A ``gather`` of the async client: all are answered, none is refused."""

    async def ask_all() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=KEY) as client:
            calls = [client.completions.create(prompt=f"{i}", **ASKED) for i in range(100)]
            stream = await client.chat.completions.create(messages=CHAT, stream=True, **ASKED)
            text = text_of([chunk async for chunk in stream])
            return [text, *await asyncio.gather(*calls)]

    text, *replies = asyncio.run(ask_all())
    assert text and all(reply.choices[0].finish_reason == "length" for reply in replies)
    assert running.service.open.count == running.service.open.bytes == 0


def test_who_calls_is_told(client: openai.OpenAI, engine: Engine) -> None:
    asked = {**ASKED, "extra_body": {"agent_id": "ada"}}
    raw = client.chat.completions.with_raw_response.create(messages=CHAT, **asked)
    assert raw.headers["x-scalesim-agent"] == "ada"
    assert raw.headers["x-scalesim-identity"] == "agent_id"
    assert engine.agent("ada").adapter is None
