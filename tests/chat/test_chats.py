"""Chats on a whole engine: whole, streamed and awaited; forced calls, forms, thinking; left early;
forgotten."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from scalesim import ChatReply, ChatRequest, Engine, Reply, Request, errors
from scalesim.chat.stream import ChatPiece
from tests.chat.world import GO, TOOLS, engine_of, saying
from tests.inside import let_copies_end

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

CALL = '<tool_call>\n{"name": "go", "arguments": {"place": "park", "pace": 2}}\n</tool_call>'
LLAMA_CALL = '{"name": "go", "parameters": {"place": "park", "pace": 2}}'
ARGUMENTS = '{"place": "park", "pace": 2}'
MOOD = {
    "type": "object",
    "properties": {"calm": {"type": "boolean"}},
    "required": ["calm"],
    "additionalProperties": False,
}


def added(pieces: list[ChatPiece]) -> tuple[str, str, list[list[str]]]:
    """What a reader of a stream has in the end: content, reasoning, names and arguments."""
    calls: list[list[str]] = []
    for delta in (delta for piece in pieces for delta in piece.tool_calls):
        if delta.name is not None:
            calls.append([delta.name, ""])
        calls[delta.index][1] += delta.arguments
    content = "".join(piece.content for piece in pieces)
    return content, "".join(piece.reasoning for piece in pieces), calls


def same(reply: ChatReply, pieces: list[ChatPiece]) -> bool:
    streamed = pieces[-1].reply
    assert streamed is not None and all(piece.reply is None for piece in pieces[:-1])
    content, reasoning, calls = added(pieces)
    assert (content or None, reasoning or None) == (streamed.content, streamed.reasoning)
    assert calls == [[call.name, call.arguments] for call in streamed.tool_calls]
    assert tuple(id for piece in pieces for id in piece.token_ids) == reply.token_ids
    told = [
        (one.text, one.content, one.reasoning, one.finish_reason, one.usage.output_tokens)
        for one in (reply, streamed)
    ]
    return told[0] == told[1]


# -- what a model says ----------------------------------------------------------------------------

SAID: list[tuple[str, str, dict[str, Any], str, str | None, str | None, int]] = [
    ("qwen", "Hello!\n", {}, "stop", "Hello!\n", None, 0),
    ("qwen", f"<think>\nHm.\n</think>\n\nI go.\n{CALL}", {}, "tool_calls", "I go.", "Hm.", 1),
    ("qwen", f"{CALL}\n{CALL}", {}, "tool_calls", None, None, 2),
    ("qwen", f"{CALL}\n{CALL}", {"parallel_tool_calls": False}, "tool_calls", None, None, 1),
    ("qwen", CALL, {"tool_choice": "none"}, "stop", CALL, None, 0),
    ("qwen", CALL, {"stop": '"pace'}, "stop", CALL.partition('"pace')[0], None, 0),
    ("qwen", CALL[:40], {"max_tokens": 40}, "length", CALL[:40], None, 0),
    ("qwen", CALL, {"max_tokens": len(CALL)}, "length", None, None, 1),
    ("llama", f"{LLAMA_CALL}; {LLAMA_CALL}", {}, "tool_calls", None, None, 2),
    ("llama", '{"name": "Ada"}', {}, "stop", '{"name": "Ada"}', None, 0),
    ("opening", "Hm.\n</think>\n\nHello!", {"tools": None}, "stop", "Hello!", "Hm.", 0),
    ("opening", "Hm.", {"tools": None, "max_tokens": 3}, "length", None, "Hm.", 0),
]


@pytest.mark.parametrize(
    ("manner", "text", "options", "reason", "content", "reasoning", "calls"), SAID
)
def test_what_a_model_says_is_taken_apart(
    manner: str, text: str, options: dict[str, Any],
    reason: str, content: str | None, reasoning: str | None, calls: int,
) -> None:  # fmt: skip
    options = {"tools": TOOLS, "mask": saying(text), "max_tokens": 300, **options}
    with engine_of(manner) as engine:
        ada = engine.agent("ada")
        reply = ada.chat("Go!", **options)
        assert isinstance(reply, Reply) and (reply.text or "") in text and reply.agent == "ada"
        assert (reply.finish_reason, reply.content, reply.reasoning) == (reason, content, reasoning)
        assert [call.name for call in reply.tool_calls] == ["go"] * calls
        assert [call.arguments for call in reply.tool_calls] == [ARGUMENTS] * calls
        assert len({call.id for call in reply.tool_calls}) == calls
        cut = reason == "length" or "stop" in options  # there a stream has begun a call already
        if not (cut and reply.content and "arguments" in reply.content):
            assert same(reply, list(ada.chat_stream("Go!", **options)))


def test_a_stream_gives_a_call_out_before_it_is_whole() -> None:
    options: dict[str, Any] = {"tools": TOOLS, "max_tokens": 300}
    with engine_of("qwen") as engine:
        ada = engine.agent("ada")
        pieces = list(ada.chat_stream("Go!", mask=saying(CALL), **options))
        assert sum(len(piece.tool_calls) for piece in pieces) > 1
        cut = list(ada.chat_stream("Go!", mask=saying(CALL), **{**options, "max_tokens": 60}))
        assert cut[-1].reply is not None and cut[-1].reply.finish_reason == "length"
        [call] = cut[-1].reply.tool_calls
        assert call.name == "go" and ARGUMENTS.startswith(call.arguments) and call.arguments


def test_the_next_turn_goes_on_from_the_answer() -> None:
    """An answer's message, appended as it is, finds the pages of the answer itself."""
    with engine_of("qwen") as engine:
        ada = engine.agent("ada")
        chat: list[Any] = [{"role": "user", "content": "Go to the park, slowly, and tell me."}]
        reply = ada.chat(chat, tools=TOOLS, mask=saying(CALL), max_tokens=300)
        [call] = reply.tool_calls
        chat += [reply.message, {"role": "tool", "tool_call_id": call.id, "content": "There."}]
        after = ada.chat(chat, tools=TOOLS, mask=saying("I am there."), max_tokens=99)
        assert after.content == "I am there." and after.message == {
            "role": "assistant", "content": "I am there.",
        }  # fmt: skip
        first = reply.usage
        assert after.usage.cached_tokens > first.prompt_tokens + first.output_tokens - 32
        nothing = ada.chat("Well?", mask=saying(""), max_tokens=9)
        assert nothing.content is None
        chat = [{"role": "user", "content": "?"}, nothing.message, {"role": "user", "content": "!"}]
        assert ada.chat(chat, max_tokens=1)


def test_samples_are_taken_apart_each() -> None:
    with engine_of("llama") as engine:
        reply = engine.agent("ada").chat("Go!", tools=TOOLS, tool_choice="required", n=3, seed=1,
                                         max_tokens=400)  # fmt: skip
        for sample in reply.samples:
            assert isinstance(sample, ChatReply) and sample.tool_calls and sample.content is None


# -- forced calls and forms -----------------------------------------------------------------------


def check_calls(reply: ChatReply, at_most: int | None = None) -> None:
    assert reply.finish_reason == "tool_calls" and reply.content is None, reply
    assert 1 <= len(reply.tool_calls) <= (at_most or 10**6)
    for call in reply.tool_calls:
        arguments = json.loads(call.arguments)
        assert call.name in ("go", "wait")
        if call.name == "go":
            jsonschema.validate(arguments, GO["parameters"])
        assert set(arguments) <= {"place", "pace"}


@pytest.mark.parametrize("manner", ["chatml", "llama"])
@pytest.mark.parametrize("parallel", [True, False])
def test_a_required_call_is_made(manner: str, parallel: bool) -> None:
    options: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "max_tokens": 400}
    options |= {"parallel_tool_calls": parallel, "temperature": 2.0}
    with engine_of(manner) as engine:
        ada = engine.agent("ada")
        for seed in range(2):
            reply = ada.chat("Go!", seed=seed, **options)
            check_calls(reply, None if parallel else 1)
            assert same(reply, list(ada.chat_stream("Go!", seed=seed, **options)))


def test_a_named_call_is_made() -> None:
    choice = {"type": "function", "function": {"name": "go"}}
    with engine_of("llama") as engine:
        for seed in range(4):
            reply = engine.agent("ada").chat("Go!", tools=TOOLS, tool_choice=choice, seed=seed)
            check_calls(reply, at_most=1)
            assert reply.tool_calls[0].name == "go"


FORMS: list[tuple[dict[str, Any], str]] = [
    (
        {"type": "json_schema", "json_schema": {"name": "m", "schema": MOOD}},
        '{"calm": (true|false)}',
    ),
    ({"type": "regex", "regex": "[a-c]{1,4}d"}, "[a-c]{1,4}d"),
    ({"type": "grammar", "grammar": 'start: "yes" | "no"'}, "yes|no"),
]


@pytest.mark.parametrize(("form", "pattern"), FORMS)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_an_answer_keeps_its_form(form: dict[str, Any], pattern: str, tools: Any) -> None:
    """Beside tools that the model may call, it does one or the other."""
    with engine_of("chatml") as engine:
        for seed in range(2):
            options: dict[str, Any] = {"seed": seed, "temperature": 2.0, "max_tokens": 400}
            ada = engine.agent("ada")
            reply = ada.chat("?", tools=tools, response_format=form, **options)
            assert same(reply, list(ada.chat_stream("?", tools=tools, response_format=form,
                                                    **options)))  # fmt: skip
            if reply.tool_calls:
                check_calls(reply)
            else:
                assert reply.content is not None and re.fullmatch(pattern, reply.content)


def test_a_pydantic_model_is_a_form() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Mood(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        model_config = pydantic.ConfigDict(extra="forbid")
        calm: bool

    with engine_of("chatml") as engine:
        ada = engine.agent("ada")
        said = ada.chat("How are you?", response_format=Mood).content
        assert isinstance(Mood.model_validate_json(said).calm, bool)
        assert Mood.model_validate_json(ada.generate("x", json_schema=Mood).text)
        with pytest.raises(errors.RequestError, match="response_format is given beside"):
            ada.chat("How are you?", response_format=Mood, regex="a")


def test_a_schema_that_cannot_be_kept_names_the_tool_s_place() -> None:
    odd = {"name": "odd", "parameters": {"type": "object", "properties": {"x": {"not": {}}}}}
    with engine_of("qwen") as engine:
        ada = engine.agent("ada")
        error = "tools: #/.defs/tool0/properties/x/not = {} cannot be kept"
        with pytest.raises(errors.StructureError, match=error):
            ada.chat("?", tools=[odd], tool_choice="required")
        assert ada.chat("?", tools=[odd], max_tokens=2)  # free to call, it is bound by nothing


# -- from event loops -----------------------------------------------------------------------------


def test_awaited_and_streamed_from_an_event_loop() -> None:
    options: dict[str, Any] = {"tools": TOOLS, "mask": saying(f"I go. {CALL}"), "max_tokens": 99}

    async def both(engine: Engine) -> tuple[ChatReply, list[ChatPiece]]:
        ada = engine.agent("ada")
        reply = await ada.chat_async("Go!", **options)
        async with ada.chat_stream_async("Go!", **options) as stream:
            pieces = [piece async for piece in stream]
        assert stream.reply is pieces[-1].reply
        return reply, pieces

    with engine_of("qwen") as engine:
        reply, pieces = asyncio.run(both(engine))
        assert same(reply, pieces) and reply.content == "I go." and len(reply.tool_calls) == 1
        assert reply.content == engine.agent("ada").chat("Go!", **options).content


def test_by_nobody_with_the_model_s_own_sampling() -> None:
    with engine_of("qwen") as engine:
        params = engine.sampling(max_tokens=6, seed=1)
        reply = engine.chat(ChatRequest("Hello", params=params))
        assert reply.agent is None and reply.usage.output_tokens <= 6
        assert engine.chat(ChatRequest("Hello")).usage.output_tokens <= 128
        awaited = asyncio.run(engine.chat_async(ChatRequest("Hello", params=params)))
        assert awaited.token_ids == reply.token_ids


def is_empty(engine: Engine) -> bool:
    let_copies_end(engine)
    memory = engine.parts.memory
    return not memory.owners.agents and memory.device.num_free == memory.device.num_usable


def test_whoever_leaves_gives_all_back() -> None:
    """A task that is cancelled, a reader that stops, a stream that is closed or never read."""

    async def leave(engine: Engine) -> None:
        ada = engine.agent("ada")
        options: dict[str, Any] = {"max_tokens": 3000, "ignore_eos": True}
        task = asyncio.create_task(ada.chat_async("Go!", **options))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with ada.chat_stream_async("Go!", **options) as stream:
            async for piece in stream:
                assert piece.reply is None
                break
        stream = ada.chat_stream_async("Go!", **options)
        await anext(stream)
        await stream.aclose()
        assert [piece async for piece in stream] == []
        unread = ada.chat_stream_async("Go!", **options)
        await unread.aclose()
        assert [piece async for piece in unread] == []

    with engine_of("qwen") as engine:
        asyncio.run(leave(engine))
        ada = engine.agent("ada")
        for _ in ada.chat_stream("Go!", max_tokens=3000, ignore_eos=True):
            break
        with ada.chat_stream("Go!", max_tokens=3000, ignore_eos=True) as stream:
            next(stream)
        assert ada.chat("Go!", max_tokens=2)  # what was left before it has ended by now
        ada.forget()
        assert is_empty(engine)


def test_run_async_is_one_batch() -> None:
    async def play() -> None:
        async with engine_of("qwen") as engine:
            ada, bob = engine.agent("ada"), engine.agent("bob")
            requests = [ada.request("Hello", max_tokens=4, seed=1),
                        bob.request("Hello", max_tokens=4, seed=1, n=2),
                        ada.request("Hello", max_tokens=20, seed=1, regex="[a-z]{3}")]  # fmt: skip
            replies = await engine.run_async(requests)
            told = [reply.token_ids for reply in replies if isinstance(reply, Reply)]
            again = [await engine.generate_async(request) for request in requests]
            assert told == [reply.token_ids for reply in again] and len(again[1].samples) == 2
            assert await engine.run_async([]) == []
            await wrong_ones(engine)
            task = asyncio.create_task(
                engine.run_async([ada.request("Go", max_tokens=3000, ignore_eos=True)] * 3)
            )
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            open_task = asyncio.create_task(
                engine.run_async([bob.request("Go", max_tokens=3000, ignore_eos=True)])
            )
            await asyncio.sleep(0)
        with pytest.raises(errors.EngineClosedError):
            await open_task  # closed beside the loop, which learns of it
        with pytest.raises(errors.EngineClosedError):
            await engine.run_async([])

    async def wrong_ones(engine: Engine) -> None:
        good = Request("Hello", params=engine.sampling(max_tokens=2))
        bad = Request("Hello", params=engine.sampling(max_tokens=2, regex="(a"))
        with pytest.raises(errors.StructureError):
            await engine.run_async([good, bad])
        with pytest.raises(errors.RequestError, match="is a str"):
            await engine.run_async([good, "Hello"])  # type: ignore[list-item]
        with pytest.raises(errors.RequestError, match="must be a list of Requests"):
            await engine.run_async("Hello")  # type: ignore[arg-type]
        kept = await engine.run_async(
            [bad, good, "Hello"],  # type: ignore[list-item]
            return_exceptions=True,
        )
        assert [type(one) for one in kept] == [errors.StructureError, Reply, errors.RequestError]

    asyncio.run(play())


# -- forgetting -----------------------------------------------------------------------------------


def test_forgotten_agents_and_forks_give_everything_back() -> None:
    """In whatever order a family is forgotten, and with calls still open."""
    with engine_of("qwen", device_pages=600) as engine:
        for order in ((0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)):
            ada = engine.agent("ada")
            chat: list[Any] = [{"role": "user", "content": "Who are you, and who was here?"}]
            chat.append(ada.chat(chat, max_tokens=20).message)
            chat.append({"role": "user", "content": "And now?"})
            family = [ada, ada.fork("bob")]
            family += [family[1].fork("eve"), ada.fork("cleo")]
            for agent in family:
                agent.chat([*chat, {"role": "user", "content": agent.id}], max_tokens=20)
            stream = family[2].chat_stream(chat, max_tokens=30, ignore_eos=True)
            next(stream)
            for index in order:
                family[index].forget()
            assert list(stream)[-1].reply is not None
            engine.agent("x").chat("x", max_tokens=1)
            engine.forget("x")
            assert is_empty(engine)
            for agent in family:
                with pytest.raises(errors.UnknownAgentError, match="was forgotten"):
                    agent.chat("Go!")
