"""Tools, structured output and thinking through the OpenAI SDK, on a model that speaks at random:
what is forced must come out whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.engine.world import tiny_engine
from tests.server.world import serving

TEMPLATE = """
{%- if tools %}{{ '<|im_start|>system\n<tools>' }}
{%- for tool in tools %}{{ tool | tojson }}{% endfor %}
{{- '</tools> <tool_call></tool_call><|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' }}{% endfor %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
CHAT: list[Any] = [{"role": "user", "content": "go"}]
PARAMETERS = {
    "type": "object",
    "properties": {"place": {"enum": ["mill", "pier"]}},
    "required": ["place"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": PARAMETERS}}
    for name in ("walk", "swim")
]


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    pytest.importorskip("llguidance")
    with tiny_engine(chat_template=TEMPLATE) as engine, serving(engine) as server:
        yield server.client()


ASKED: dict[str, Any] = {"model": "tiny", "messages": CHAT, "max_tokens": 400, "seed": 3}


@pytest.mark.parametrize("name", ["walk", "swim"])
def test_a_named_tool_is_called(client: openai.OpenAI, name: str) -> None:
    choice: Any = {"type": "function", "function": {"name": name}}
    reply = client.chat.completions.create(**ASKED, tools=TOOLS, tool_choice=choice)
    [call] = reply.choices[0].message.tool_calls or []
    assert call.type == "function" and call.function.name == name and call.id
    assert json.loads(call.function.arguments)["place"] in ("mill", "pier")


def test_a_call_is_streamed(client: openai.OpenAI) -> None:
    asked = {**ASKED, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    whole = client.chat.completions.create(**asked)
    names, ids, arguments, reasons = [], [], "", []
    for chunk in client.chat.completions.create(**asked, stream=True):
        [choice] = chunk.choices
        reasons.append(choice.finish_reason)
        for delta in choice.delta.tool_calls or []:
            assert delta.index == 0 and delta.function
            names += [delta.function.name] if delta.function.name else []
            ids += [delta.id] if delta.id else []
            arguments += delta.function.arguments or ""
    [call] = whole.choices[0].message.tool_calls or []
    assert names == [call.function.name] and len(ids) == 1
    assert json.loads(arguments) == json.loads(call.function.arguments)
    assert reasons[-1] == whole.choices[0].finish_reason == "tool_calls"


def test_what_a_tool_gave_goes_back(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function",
            "function": {"name": "walk", "arguments": '{"place": "mill"}'}}  # fmt: skip
    messages = [
        *CHAT,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "you are there"},
    ]
    reply = client.chat.completions.create(
        **{**ASKED, "messages": messages, "max_tokens": 4}, tools=TOOLS, tool_choice="none"
    )
    assert reply.choices[0].message.tool_calls is None and reply.usage


class Move(BaseModel):
    kind: Literal["walk", "swim"]
    place: Literal["mill", "pier"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_is_kept(client: openai.OpenAI, stream: bool) -> None:
    if not stream:
        reply = client.chat.completions.parse(**ASKED, response_format=Move)
        found = reply.choices[0].message.parsed
    else:
        with client.chat.completions.stream(**ASKED, response_format=Move) as events:
            found = events.get_final_completion().choices[0].message.parsed
    assert isinstance(found, Move)


def test_regex_and_grammar(client: openai.OpenAI) -> None:
    given = client.completions.create(
        model="tiny", prompt="a", max_tokens=20, extra_body={"regex": "(mill|pier){2}"}
    )
    assert given.choices[0].text in ("millmill", "millpier", "piermill", "pierpier")
    chat = client.chat.completions.create(**ASKED, extra_body={"grammar": 'start: "yes" | "no"'})
    assert chat.choices[0].message.content in ("yes", "no")


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "fly"}}}, "fly"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        ({"regex": "("}, "regex"),
        ({"grammar": "start: x"}, "grammar"),
        ({"json_schema": {"type": "nothing"}}, ""),
        ({"json_schema": {"type": "object", "description": "x" * 200_000}}, "at most"),
        ({"chat_template_kwargs": {"tools": []}}, "tools"),
        ({"chat_template_kwargs": {"tokenize": True}}, "tokenize"),
    ],
)
def test_what_cannot_be_kept_is_refused(
    client: openai.OpenAI, fields: dict[str, Any], part: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{**ASKED, "extra_body": fields})
    assert part in refused.value.message
