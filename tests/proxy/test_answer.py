"""Requests and answers as the record reads them: any text, in any pieces, and never an error."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalesim.proxy.answer import AnswerReader, ReadAnswer
from scalesim.proxy.texts import answer_of, prompt_of
from scalesim.trace.trace import common_length

CHUNKS: list[dict[str, Any]] = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"index": 0, "delta": {"content": "Grüße "}}]},
    {"choices": [{"index": 1, "delta": {"content": "of another choice"}}]},
    {"choices": [{"index": 0, "delta": {"content": "🙂"}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [
        {"index": 0, "function": {"name": "go", "arguments": '{"a'}}]}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [
        {"index": 0, "function": {"arguments": '":1}'}}]}}]},
    {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3,
                              "prompt_tokens_details": {"cached_tokens": 5}}},
]  # fmt: skip
STREAM = "".join(
    f"data: {json.dumps(chunk, ensure_ascii=False)}\r\n\r\n: a comment\n" for chunk in CHUNKS
).encode()
WHOLE = ReadAnswer("Grüße 🙂", [{"function": {"name": "go", "arguments": '{"a":1}'}}], 7, 5, 3)


def read(data: bytes, cuts: list[int], *, is_stream: bool) -> ReadAnswer:
    reader = AnswerReader(is_stream=is_stream)
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in pairwise(places):
        reader.feed(data[start:end])
    return reader.finish()


@given(st.lists(st.integers(0, 10_000)))
def test_a_stream_reads_the_same_in_any_pieces(cuts: list[int]) -> None:
    assert read(STREAM + b"data: [DONE]\n\n", cuts, is_stream=True) == WHOLE


@given(st.lists(st.integers(0, 10_000)))
def test_a_whole_answer_reads_the_same_in_any_pieces(cuts: list[int]) -> None:
    message = {"content": WHOLE.text, "tool_calls": WHOLE.tool_calls}
    body = {"choices": [{"message": message}], "usage": CHUNKS[-1]["usage"]}
    assert read(json.dumps(body).encode(), cuts, is_stream=False) == WHOLE


def test_a_completion_has_its_text() -> None:
    body = json.dumps({"choices": [{"index": 0, "text": "so it goes"}]}).encode()
    assert read(body, [], is_stream=False).text == "so it goes"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["choices", "delta", "message", "content", "usage", "tool_calls", "function", "index",
             "prompt_tokens_details", "cached_tokens", "arguments", "name", "messages", "prompt",
             "tools", "text", "role"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(VALUES, st.booleans())
def test_nothing_that_a_server_sends_is_an_error(value: Any, is_stream: bool) -> None:
    data = json.dumps(value).encode()
    read(b"data: " + data + b"\n" if is_stream else data, [3], is_stream=is_stream)
    read(data[:-1], [], is_stream=is_stream)


@given(st.dictionaries(st.sampled_from(["messages", "prompt", "tools"]), VALUES))
def test_nothing_that_a_program_sends_is_an_error(body: dict[str, Any]) -> None:
    assert prompt_of(body).dtype == np.int32


def test_an_answer_is_found_again_in_the_next_prompt() -> None:
    chat: list[dict[str, Any]] = [{"role": "system", "content": "You are Ada."}]
    before = np.concatenate([prompt_of({"messages": chat}), answer_of("I wave.")])
    chat += [{"role": "assistant", "content": "I wave."}, {"role": "user", "content": "And now?"}]
    assert common_length(before, prompt_of({"messages": chat})) == len(before)


@pytest.mark.parametrize("content", ["tell me", [{"type": "text", "text": "tell me"}]])
def test_text_is_text_in_either_form(content: Any) -> None:
    plain = prompt_of({"messages": [{"role": "user", "content": "tell me"}]})
    assert np.array_equal(prompt_of({"messages": [{"role": "user", "content": content}]}), plain)


def test_tools_are_part_of_the_prompt_and_ids_are_not() -> None:
    chat = [{"role": "user", "content": "go"}]
    tools = [{"type": "function", "function": {"name": "go"}}]
    assert len(prompt_of({"messages": chat, "tools": tools})) > len(prompt_of({"messages": chat}))
    calls = [{"id": str(n), "function": {"name": "go", "arguments": "{}"}} for n in range(2)]
    first, second = (answer_of("", [call]) for call in calls)
    assert np.array_equal(first, second) and len(first) > len(answer_of(""))


@pytest.mark.parametrize(("prompt", "length"), [([5, 6, 7], 3), (["one two", "three"], 2)])
def test_prompts_of_completions(prompt: Any, length: int) -> None:
    assert len(prompt_of({"prompt": prompt})) == length
