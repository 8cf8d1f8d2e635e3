"""A text taken apart: what is what, however the text is cut, and what broken calls become."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scalesim.chat.output_parser import OutputParser
from scalesim.chat.reply import ChatDelta
from scalesim.chat.tool_formats import HERMES, LLAMA3

Parsed = tuple[str | None, str | None, list[tuple[str, str]]]
NAMES = frozenset({"go", "wait"})
GO = '{"name": "go", "arguments": {"to": "park"}}'
PARK = ("go", '{"to": "park"}')
CALL = f"<tool_call>\n{GO}\n</tool_call>"


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    return [text[begin:end] for begin, end in pairwise(places)]


def parsed(pieces: list[str], **settings: Any) -> Parsed:
    """What the deltas add up to, which is what the parser says in the end."""
    parser = OutputParser(names=NAMES, **settings)
    deltas = [*map(parser.feed, pieces), parser.finish()]
    calls = added(deltas)
    assert calls == [(call.name, call.arguments) for call in parser.tool_calls]
    content = "".join(delta.content for delta in deltas) or None
    reasoning = "".join(delta.reasoning for delta in deltas) or None
    assert (content, reasoning) == (parser.content, parser.reasoning)
    return content, reasoning, calls


def added(deltas: list[ChatDelta]) -> list[tuple[str, str]]:
    """The calls of ``deltas``: each is begun once, with an id and a name, and then goes on."""
    calls: list[list[str]] = []
    ids = set()
    for delta in (one for delta in deltas for one in delta.tool_calls):
        if delta.index == len(calls):
            assert delta.id is not None and delta.name is not None
            ids.add(delta.id)
            calls.append([delta.name, delta.arguments])
        else:
            assert delta.index == len(calls) - 1 and delta.id is None and delta.name is None
            calls[-1][1] += delta.arguments
    assert len(ids) == len(calls)
    return [(name, arguments) for name, arguments in calls]


# -- however a text is cut ------------------------------------------------------------------------

FRAGMENTS = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<|python_tag|>", "<", "</t", ">", " ",
    "\n", "\n\n", "Hello", "; ", "{", "}", '"', ":", ",", "[", "]", "1", "null", "'", "\\",
    '{"name": "go"', '"arguments": {', '"parameters": {"to": ', '"name": "wait"}', GO, CALL,
    GO.replace("arguments", "parameters"), "é", "\u2028", "\x00",
]  # fmt: skip
SETTINGS = st.fixed_dictionaries(
    {
        "tools": st.sampled_from([None, HERMES, LLAMA3]),
        "thinking": st.sampled_from(["no", "may", "open"]),
        "max_calls": st.sampled_from([None, 1]),
        "streams_arguments": st.booleans(),
    }
)
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)


@given(TEXTS, st.lists(st.integers(0, 200), max_size=8), SETTINGS)
@example("<think>\nhm </think>\n\n" + CALL, [3, 9, 40], {"tools": HERMES, "thinking": "may"})
def test_any_cut_gives_the_same(text: str, cuts: list[int], settings: dict[str, Any]) -> None:
    whole = parsed([text], **settings)
    assert parsed(pieces_of(text, cuts), **settings) == whole
    assert parsed(list(text), **settings) == whole
    for _, arguments in [] if settings.get("streams_arguments") else whole[2]:
        assert isinstance(json.loads(arguments), dict)


@given(TEXTS)
def test_without_thinking_and_tools_the_content_is_the_text(text: str) -> None:
    assert parsed(list(text)) == (text or None, None, [])


@given(TEXTS, st.sampled_from(["may", "open"]))
def test_no_letter_of_an_answer_is_lost(text: str, thinking: str) -> None:
    """Only the marks of thinking, and blanks around it."""
    content, reasoning, _ = parsed([text], thinking=thinking)
    for mark in ("<think>", "</think>"):
        text = text.replace(mark, "")
    left = ((reasoning or "") + (content or "")).replace("<think>", "").replace("</think>", "")
    assert "".join(left.split()) == "".join(text.split())


# -- what is what ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CALL, (None, None, [PARK])),
        (f"{CALL}\n{CALL}\n", (None, None, [PARK, PARK])),
        (f"I go.\n{CALL}", ("I go.", None, [PARK])),
        (f"I go.\n\n{CALL}\n\nI went.\n", ("I go.\n\nI went.\n", None, [PARK])),
        (f"<think>\nA park? \n</think>\n\n{CALL}", (None, "A park?", [PARK])),
        (f"<think>{CALL}</think>Hello", ("Hello", CALL, [])),
        (
            '<tool_call>{"arguments": {}, "name": "wait"}</tool_call>',
            (None, None, [("wait", "{}")]),
        ),
        ('<tool_call>{"name": "wait"}</tool_call>', (None, None, [("wait", "{}")])),
        ('<tool_call>{"name": "fly", "arguments": null}', (None, None, [("fly", "{}")])),
        ("a < b, <tool_cal", ("a < b, <tool_cal", None, [])),
    ],
)
def test_hermes(text: str, expected: Parsed) -> None:
    assert parsed(list(text), tools=HERMES, thinking="may") == expected
    assert parsed([text], tools=HERMES, thinking="may", streams_arguments=True) == expected


BARE = GO.replace("arguments", "parameters")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BARE, (None, None, [PARK])),
        (f" {BARE}; {BARE}", (None, None, [PARK, PARK])),
        (f"{BARE}\n{BARE}\n", (None, None, [PARK, PARK])),
        (f"<|python_tag|>{BARE}", (None, None, [PARK])),
        (f"I go. <|python_tag|>{BARE};<|python_tag|>{BARE}", ("I go.", None, [PARK, PARK])),
        (f'{{"type": "function", {BARE[1:]}', (None, None, [PARK])),
        (f"I said {BARE}", (f"I said {BARE}", None, [])),
        ('{"name": "Ada", "age": 3}', ('{"name": "Ada", "age": 3}', None, [])),
        ("<|python_tag|>print(1)", ("<|python_tag|>print(1)", None, [])),
    ],
)
def test_llama(text: str, expected: Parsed) -> None:
    assert parsed(list(text), tools=LLAMA3) == expected
    assert parsed([text], tools=LLAMA3, streams_arguments=True) == expected


@pytest.mark.parametrize(
    ("thinking", "text", "expected"),
    [
        ("open", "So.\n</think>\n\nHello \n", ("Hello \n", "So.", [])),
        ("open", "<think>\nSo.</think>Hello", ("Hello", "So.", [])),
        ("open", "So it never ends", (None, "So it never ends", [])),
        ("may", "Hello </think>", ("Hello </think>", None, [])),
        ("may", "\n<think>\n\n</think>\n\nHello", ("Hello", None, [])),
        ("no", "<think>a</think>", ("<think>a</think>", None, [])),
    ],
)
def test_thinking(thinking: str, text: str, expected: Parsed) -> None:
    assert parsed(list(text), thinking=thinking) == expected


def test_one_call_at_most() -> None:
    assert parsed([f"Now {CALL}\n{CALL} more"], tools=HERMES, max_calls=1) == ("Now", None, [PARK])


# -- what small models write ----------------------------------------------------------------------

BROKEN = [
    "<tool_call>\n{'name': 'go', 'arguments': {}}\n</tool_call>",
    '<tool_call>\n{"name": go}\n</tool_call>',
    '<tool_call>\n{"name": "go", "arguments": [1]}\n</tool_call>',
    '<tool_call>\n{"name": "go", "arguments": "to the park"}\n</tool_call>',
    '<tool_call>\n{"name": "", "arguments": {}}\n</tool_call>',
    '<tool_call>\n{"arguments": {"to": "park"}}\n</tool_call>',
    '<tool_call>\n{"name": "go", "name": "wait"}\n</tool_call>',
    "<tool_call>\ngo(to=park)\n</tool_call>",
    "<tool_call></tool_call>",
    '<tool_call>\n{"name": "go", "arguments"',
]
BROKEN_WITHIN = [
    '<tool_call>\n{"name": "go", "arguments": {"to": }}\n</tool_call>',
    '<tool_call>\n{"name": "go", "arguments": {"to": park}}\n</tool_call>',
    '<tool_call>\n{"name": "go", "arguments": {"to": 01}}\n</tool_call>',
    '<tool_call>\n{"name": "go", "arguments": {"to": "\\x"}}\n</tool_call>',
    '<tool_call>\n{"name": "go", "arguments": {"to": "\\ud800"}}\n</tool_call>',
    '<tool_call>\n{"name": "go", "arguments": {"a": ' + "[" * 80,
]


@pytest.mark.parametrize("text", [*BROKEN, *BROKEN_WITHIN])
def test_a_broken_call_stays_content(text: str) -> None:
    text = f"I go.\n{text}\nSo."
    assert parsed(list(text), tools=HERMES) == (text, None, [])
    assert parsed([text + CALL], tools=HERMES) in [(text, None, [PARK]), (text + CALL, None, [])]


@pytest.mark.parametrize("text", BROKEN)
def test_a_stream_gives_no_broken_call_out(text: str) -> None:
    assert parsed(list(text), tools=HERMES, streams_arguments=True) == (text, None, [])


@pytest.mark.parametrize("text", BROKEN_WITHIN)
def test_a_call_that_a_stream_gave_out_stays_one(text: str) -> None:
    _, _, [(name, arguments)] = parsed(list(text), tools=HERMES, streams_arguments=True)
    assert name == "go" and arguments and arguments in text


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (CALL.replace("}}", "}"), {"to": "park"}),  # a brace too few
        (CALL.replace("}}", "}}}"), {"to": "park"}),  # or too many
        (CALL.removesuffix("\n</tool_call>"), {"to": "park"}),  # no end
        (CALL.replace("park", "a\nb\tc"), {"to": "a\nb\tc"}),  # line breaks in a string
        (CALL.replace("park", "</tool_call>"), {"to": "</tool_call>"}),
        (CALL.replace("arguments", "parameters"), {"to": "park"}),
        ('<tool_call>{"name": "go", "arguments": "{\\"to\\": 1}"}</tool_call>', {"to": 1}),
        ('<tool_call>{"name": "go", "id": [1, {}], "arguments": {"a": [-1.5e3, {"b": null}]}}',
         {"a": [-1500.0, {"b": None}]}),
    ],
)  # fmt: skip
def test_what_is_forgiven(text: str, arguments: dict[str, Any]) -> None:
    for streams in (False, True):
        content, _, calls = parsed(list(text), tools=HERMES, streams_arguments=streams)
        assert content is None and [json.loads(written) for _, written in calls] == [arguments]


def test_two_calls_between_two_marks() -> None:
    text = f'<tool_call>\n{GO}\n{{"name": "wait"}}\n</tool_call>'
    assert parsed(list(text), tools=HERMES) == (None, None, [PARK, ("wait", "{}")])


def test_arguments_are_streamed_as_they_come() -> None:
    parser = OutputParser(HERMES, NAMES, streams_arguments=True)
    given = [delta for char in CALL for delta in parser.feed(char).tool_calls]
    assert given[0].name == "go" and given[0].arguments == "{"
    assert [delta.arguments for delta in given] == list('{"to": "park"}')
    whole = OutputParser(HERMES, NAMES)
    [delta] = [delta for char in CALL for delta in whole.feed(char).tool_calls]
    assert delta.arguments == '{"to": "park"}'


def test_content_is_not_held_back() -> None:
    """But for blanks, and for what may become a mark."""
    parser = OutputParser(HERMES, NAMES, thinking="may")
    shown = [parser.feed(char).content for char in "<thank you> <tool"]
    assert shown == ["", "", "", "<tha", "n", "k", "", " y", "o", "u", ">", *[""] * 6]
    assert parser.finish().content == " <tool"
