"""Messages, tools and variables on their way to a template: what clients send is made into what
templates take, or refused with its place."""

from __future__ import annotations

from typing import Any

import pytest

from scalesim.chat.chat_request import ChatRequest
from scalesim.engine.engine import Engine
from scalesim.errors import RequestError
from scalesim.model.text.chat import CHATML
from tests.chat.world import GO, MANNERS, TOOLS, engine_of
from tests.engine.world import tiny_engine
from tests.text.templates_written_here import CHATML_PLAIN, LLAMA2_MANNER, ODDS_AND_ENDS

USER = {"role": "user", "content": "Go!"}
ARGUMENTS = '{"place": "park", "pace": 2}'


def call(id: str, arguments: str = ARGUMENTS) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": "go", "arguments": arguments}}


def answer(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def result(id: str | None, content: str) -> dict[str, Any]:
    return {"role": "tool", "content": content} | ({"tool_call_id": id} if id else {})


def rendered(engine: Engine, messages: Any, **fields: Any) -> str:
    prompt: Any = engine.chat_turn(ChatRequest(messages, **fields)).request.prompt
    assert isinstance(prompt.text, str)
    return prompt.text


def template_of(engine: Engine) -> Any:
    return engine.model.chat_template


@pytest.mark.parametrize("manner", ["qwen", "llama"])
def test_what_is_plain_goes_through_as_it_is(manner: str) -> None:
    messages = [{"role": "system", "content": "You are Ada."}, USER]
    with engine_of(manner) as engine:
        assert rendered(engine, messages) == template_of(engine).render(messages)
        assert rendered(engine, messages, tools=TOOLS) == template_of(engine).render(
            messages, tools=TOOLS
        )
        assert rendered(engine, "Go!") == template_of(engine).render([USER])
        assert rendered(engine, [USER], tools=TOOLS, tool_choice="none") == rendered(engine, "Go!")
        assert rendered(engine, [USER], tools=[]) == rendered(engine, "Go!")


def test_arguments_are_written_as_the_model_wrote_them() -> None:
    """Whether a template writes an object down, or takes the text: the next prompt goes on where
    the answer ended."""
    messages = [USER, answer(call("a")), result("a", "You are there.")]
    for manner, written in (
        ("qwen", f'<tool_call>\n{{"name": "go", "arguments": {ARGUMENTS}}}\n</tool_call>'),
        ("llama", f'{{"name": "go", "parameters": {ARGUMENTS}}}'),
    ):
        with engine_of(manner) as engine:
            assert written in rendered(engine, messages, tools=TOOLS)
    with tiny_engine(chat_template=CHATML) as engine:
        assert f'"arguments": {ARGUMENTS}' in rendered(engine, messages, tools=TOOLS)
        broken = [USER, answer(call("a", "{")), result("a", "?")]
        assert '"arguments": "{"' in rendered(engine, broken, tools=TOOLS)


@pytest.mark.parametrize("ids", [("a", "b"), (None, None)])
def test_an_answer_of_several_calls_is_several_for_llama(ids: tuple[str | None, ...]) -> None:
    """Its template refuses two in one message."""
    first, second = (call(id or "") for id in ("a", "b"))
    results = [result(ids[0], "There."), result(ids[1], "Here.")]
    together = [USER, answer(first, second), *results, USER]
    apart = [USER, answer(first), results[0], answer(second), results[1], USER]
    with engine_of("llama") as engine:
        with pytest.raises(RequestError, match="One call at a time"):
            template_of(engine).render(together, tools=TOOLS)
        assert rendered(engine, together, tools=TOOLS) == rendered(engine, apart, tools=TOOLS)
        open_ended = [USER, answer(first, second)]
        assert rendered(engine, open_ended, tools=TOOLS).count('"parameters": {"place"') == 2


def test_parts_and_developers_and_empty_answers() -> None:
    parts = [{"type": "text", "text": "Go"}, {"type": "text", "text": "now!"}]
    sent = [
        {"role": "developer", "content": "You are Ada."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [], "refusal": None},
        USER,
    ]
    meant = [
        {"role": "system", "content": "You are Ada."},
        {"role": "user", "content": "Go\nnow!"},
        {"role": "assistant", "content": ""},
        USER,
    ]
    with engine_of("llama") as engine:
        assert rendered(engine, sent) == template_of(engine).render(meant)
    knows = (
        "{% for m in messages %}{{ m.role }}{% if m.role == 'developer' %}!{% endif %}{% endfor %}"
    )
    with tiny_engine(chat_template=knows) as engine:
        assert rendered(engine, sent[:2]) == "developer!user"


def test_variables_reach_the_template() -> None:
    closed = "<think>\n\n</think>\n\n"
    with engine_of("qwen") as engine:
        assert rendered(engine, "Go!", enable_thinking=False).endswith(closed)
        assert not rendered(engine, "Go!", enable_thinking=True).endswith(closed)
        variables = {"enable_thinking": False}
        assert rendered(engine, "Go!", chat_template_kwargs=variables).endswith(closed)
        both = rendered(engine, "Go!", chat_template_kwargs=variables, enable_thinking=True)
        assert both.endswith(closed)  # what is said of a variable by its name
    with tiny_engine(chat_template="{{ thinking }}{{ mood }}") as engine:
        given: dict[str, Any] = {"chat_template_kwargs": {"mood": [1]}, "enable_thinking": True}
        assert rendered(engine, "Go!", **given) == "True[1]"


@pytest.mark.parametrize("kwargs", [{"tools": []}, {"messages": []}, {"tokenize": 1}, {"a b": 1},
                                    {"chat_template": "x"}, {1: 1}, {"": 1}, [], "a"])  # fmt: skip
def test_names_that_no_variable_has(kwargs: Any) -> None:
    with engine_of("qwen") as engine, pytest.raises(RequestError, match="chat_template_kwargs"):
        engine.chat(ChatRequest("Go!", chat_template_kwargs=kwargs))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages is empty"),
    ({"messages": [{"role": "user"}]}, r"messages\[0\] has a content of type NoneType"),
    ({"messages": [USER, {"role": "usr", "content": "x"}]}, r"messages\[1\] has the role 'usr'"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only text is read"),
    ({"messages": 5}, "messages is a int"),
    ({"messages": b"hi"}, "messages is a bytes"),
    ({"tools": {"name": "go"}}, "tools is"),
    ({"tools": [{"type": "retrieval"}]}, r"tools\[0\] is of type 'retrieval'"),
    ({"tools": [{"type": "function"}]}, r"tools\[0\].function.name is None"),
    ({"tools": [GO, {"name": "go"}]}, "tools has two functions 'go'"),
    ({"tools": [{"name": "go", "parameters": "x"}]}, r"tools\[0\].function.parameters is 'x'"),
    ({"tool_choice": "required"}, "tool_choice='required' needs tools"),
    ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice='any' must be 'none'"),
    ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice=.* must be 'none'"),
    (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "fly"}}},
        "tool_choice names the function 'fly', which is none of tools: 'go', 'wait'",
    ),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls=1 must be True or False"),
    ({"enable_thinking": "no"}, "enable_thinking='no' must be"),
    ({"response_format": "json"}, "response_format='json' must be a pydantic model"),
    ({"response_format": {"type": "yaml"}}, "response_format.type is 'yaml'; it must be one of"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema is None"),
    ({"response_format": {"type": "regex", "regex": 5}}, "response_format.regex is 5"),
    ({"params": {"max_tokens": 5}}, "params=.* must be a SamplingParams"),
]


@pytest.mark.parametrize(("fields", "error"), WRONG)
def test_what_is_wrong_is_refused_with_its_place(fields: dict[str, Any], error: str) -> None:
    with engine_of("qwen") as engine:
        request = ChatRequest(**{"messages": [USER], **fields})
        for method in (engine.chat, engine.chat_stream, engine.chat_stream_async):
            with pytest.raises(RequestError, match=error):
                method(request)
        assert engine.stats.calls == 0


@pytest.mark.parametrize(
    "template", [CHATML_PLAIN, LLAMA2_MANNER, ODDS_AND_ENDS, MANNERS["opening"]]
)
def test_a_template_without_tools_is_given_none(template: str) -> None:
    """The model would not know of any."""
    error = "has no place for them|teaches the calls neither of Hermes"
    with tiny_engine(chat_template=template) as engine:
        with pytest.raises(RequestError, match=error):
            rendered(engine, [USER], tools=TOOLS)
        assert rendered(engine, [USER], tools=TOOLS, tool_choice="none")
