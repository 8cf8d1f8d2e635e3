"""A structure in a frame: behind thinking, between the marks of calls, or calls in its place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scalesim.chat.tool_formats import HERMES, LLAMA3, ToolFormat
from scalesim.errors import RequestError, StructureError
from scalesim.sampling.check_params import check_params
from scalesim.sampling.frame import Frame, FramedCalls
from scalesim.sampling.grammar import Structures
from scalesim.sampling.params import SamplingParams
from tests.chat.world import GO, WAIT
from tests.engine.world import TOKENIZER

pytest.importorskip("llguidance")

[END] = TOKENIZER.encode("<|eos|>", add_special_tokens=False)
STRUCTURES = Structures(TOKENIZER, TOKENIZER.vocab_size, frozenset([END]))
NO_THINKING, MAY_THINK, OPENED = ("", ""), ("<think>", "</think>"), ("", "</think>")
THOUGHT = 'Hm </thin {"name" \n</think>'
CALL = '{"name": "go", "arguments": {"place": "mill", "pace": 3}}'
CALLS = {
    HERMES: f"<tool_call>\n{CALL}\n</tool_call>",
    LLAMA3: CALL.replace("arguments", "parameters"),
}


def takes(params: SamplingParams, text: str) -> bool:
    """Whether a sequence under ``params`` may say exactly ``text``: token by token, and at its end
    by the judge that knows no grammar."""
    make = STRUCTURES.compile(check_params(params, TOKENIZER.vocab_size))
    assert make is not None
    constraint = make()
    masks = np.zeros((1, constraint.num_words), np.int32)
    ids = [*text.encode(), END]
    for i, token in enumerate(ids):
        masks[:] = 0
        assert constraint.filler([constraint], [], masks) == [None]
        if not masks[0, token // 32] >> (token % 32) & 1:
            return False
        if token == END:
            constraint.end(END)
        elif constraint.push(token):
            return i == len(ids) - 2
    return True


@pytest.mark.parametrize("format", CALLS, ids=lambda format: format.name)
@pytest.mark.parametrize("several", [True, False])
def test_calls(format: ToolFormat, several: bool) -> None:
    call = CALLS[format]
    two = f"{call}{format.between}{call}"
    for thinking, begins in (
        (NO_THINKING, [""]),
        (MAY_THINK, ["", f"<think>{THOUGHT}", f"<think>\n{THOUGHT}\n\n", "<think></think>"]),
        (OPENED, [THOUGHT, f"<think>{THOUGHT}\n", "</think>"]),
    ):
        params = SamplingParams(frame=Frame(*thinking, format.framed([GO, WAIT], several)))
        for begin in begins:
            assert takes(params, begin + call)
            assert takes(params, begin + two) == several
            assert not takes(params, f"{begin}Hello")
            assert not takes(params, begin + call.replace("mill", "moon"))
            assert not takes(params, begin + call.replace('"pace": 3', '"pace": 9'))
            assert not takes(params, begin + call.replace("go", "fly"))
        if thinking is not MAY_THINK and thinking is not OPENED:
            assert not takes(params, f"<think>{THOUGHT}{call}")
        if thinking is OPENED:
            assert not takes(params, call)


FORMS: list[tuple[dict[str, Any], str, str]] = [
    ({"json_schema": {"type": "array", "items": {"type": "boolean"}}}, "[true]", "[1]"),
    ({"regex": "[a-c]+d"}, "abcd", "abce"),
    ({"grammar": 'start: one ";"\none: "yes" | "no"'}, "yes;", "maybe;"),
]


@pytest.mark.parametrize(("form", "good", "bad"), FORMS)
@pytest.mark.parametrize("calls", [None, HERMES, LLAMA3], ids=["", "hermes", "llama3"])
def test_forms(form: dict[str, Any], good: str, bad: str, calls: ToolFormat | None) -> None:
    framed = None if calls is None else calls.framed([GO, WAIT], True)
    for thinking, begin in (
        (MAY_THINK, ""),
        (MAY_THINK, f"<think>{THOUGHT}\n\n"),
        (OPENED, THOUGHT),
    ):
        params = SamplingParams(frame=Frame(*thinking, framed), **form)
        assert takes(params, begin + good) and not takes(params, begin + bad)
        for format, call in CALLS.items():
            assert takes(params, begin + call) == (format is calls)


def test_references_lead_within_a_tool() -> None:
    """To its own definitions, whatever they are called; what is data is left alone."""
    tree = {
        "type": "object",
        "properties": {
            "$ref": {"const": {"$ref": "#/x"}},
            "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        },
        "required": ["$ref", "next"],
    }
    tools = [{"name": "a", "parameters": tree}, {"name": "b", "parameters": tree}]
    params = SamplingParams(frame=Frame(calls=LLAMA3.framed(tools, False)))
    leaf = '{"$ref": {"$ref": "#/x"}, "next": null}'
    nested = leaf.replace("null", leaf)
    assert takes(params, f'{{"name": "b", "parameters": {nested}}}')
    assert not takes(params, f'{{"name": "b", "parameters": {nested.replace("#/x", "#/y")}}}')


def test_what_a_tool_does_not_name_is_ruled_out() -> None:
    """Unless its schema speaks of more."""
    one = {"type": "object", "properties": {"x": {"type": "null"}}}
    text = '{"name": "f", "parameters": {"x": null, "y": 1}}'
    for schema, allowed in ((one, False), ({**one, "additionalProperties": True}, True)):
        tools = [{"name": "f", "parameters": schema}]
        params = SamplingParams(frame=Frame(calls=LLAMA3.framed(tools, False)))
        assert takes(params, text) == allowed


def test_the_judge_judges_what_is_in_the_frame() -> None:
    """It knows where the free text ends, and every call."""
    schema = '{"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2}'
    calls = FramedCalls(schema, "<", ">", ", ")
    assert list(calls.values("<[1]>, <[2, 1]>")) == ["[1]", "[2, 1]"]
    for wrong in ("", "<[1]", "<[1]> ", "[1]", "<[1]>, ", "<x>"):
        with pytest.raises(ValueError):
            list(calls.values(wrong))
    with pytest.raises(ValueError, match="follows"):
        list(FramedCalls(schema, "<", ">").values("<[1]>, <[1]>"))


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"frame": "x"}, "frame='x' must be a Frame"),
        ({"frame": Frame("a", "b")}, "frame is around a structure"),
        ({"frame": Frame(calls="x"), "regex": "a"}, "frame.calls='x' must be FramedCalls"),
        ({"frame": Frame(5, "b"), "regex": "a"}, "frame=5 must be a string"),
        ({"frame": Frame(calls=FramedCalls("{}")), "mask": len}, "frame is around a structure"),
        ({"frame": Frame("a", "\ud800"), "regex": "a"}, "no Unicode text"),
    ],
)
def test_wrong_frames(params: dict[str, Any], error: str) -> None:
    with pytest.raises(RequestError, match=error):
        check_params(SamplingParams(**params), TOKENIZER.vocab_size)


def test_a_schema_of_calls_that_is_none() -> None:
    with pytest.raises(StructureError, match="tools"):
        STRUCTURES.compile(SamplingParams(frame=Frame(calls=FramedCalls("{"))))
    with pytest.raises(StructureError, match="tools"):
        STRUCTURES.compile(SamplingParams(frame=Frame(calls=FramedCalls("[]"))))
