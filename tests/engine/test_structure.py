"""Structured output: every finished text is valid, the same under every circumstance, and what is
too much is refused with its limit.

``python -m benchmarks structure`` does the same with a thousand schemas.
"""

from __future__ import annotations

import asyncio
import json
import re
from functools import cache
from typing import Any

import pytest

from scalesim.config import StructureConfig
from scalesim.engine.engine import Engine
from scalesim.errors import RequestError, StructureError
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.sampling.grammar import Structure, Structures
from scalesim.sampling.params import SamplingParams
from tests.engine.test_sampling import WORLDS
from tests.engine.world import TOKENIZER, tiny_engine
from tests.inside import part

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["calm", "cross", None]},
        "pets": {"type": "array", "items": {"const": "cat"}, "maxItems": 3},
    },
    "required": ["name", "age", "mood", "pets"],
    "additionalProperties": False,
}
VERBS = 'start: who " " verb "."\nwho: "Ada" | "Bob"\nverb: "runs" | "waits" | "is " /[a-z]{2,5}/\n'
TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]"
ASKED: list[dict[str, Any]] = [
    {"json_schema": PERSON},
    {"regex": TIME, "temperature": 2.0},
    {"grammar": VERBS, "temperature": 0.0},
    {},
    {"json_schema": json.dumps({"type": "array", "items": {"type": "boolean"}, "minItems": 4})},
    {"json_schema": PERSON, "min_tokens": 50, "temperature": 1.5, "repetition_penalty": 1.1},
]


def requests(engine: Engine) -> list[Request]:
    return [
        engine.agent(i).request(f"Agent {i} says: ", max_tokens=120, seed=i, **params)
        for i, params in enumerate(ASKED)
    ]


def check(replies: list[Reply | Exception]) -> list[str]:
    texts = []
    for reply in replies:
        assert isinstance(reply, Reply) and reply.text is not None, reply
        texts.append(reply.text)
    for i in (0, 5):
        assert replies[i].finish_reason == "stop"  # type: ignore[union-attr]
        jsonschema.validate(json.loads(texts[i]), PERSON)
    assert re.fullmatch(TIME, texts[1])
    assert re.fullmatch(r"(Ada|Bob) (runs|waits|is [a-z]{2,5})\.", texts[2])
    assert len(json.loads(texts[4])) >= 4
    return texts


@cache
def alone() -> list[str]:
    with tiny_engine() as engine:
        return check([engine.generate(request) for request in requests(engine)])


@pytest.mark.parametrize("world", ["pressure", "graphs", "two, pressure"])
def test_always_valid_and_the_same(world: str) -> None:
    with WORLDS[world]() as engine:
        texts = check(engine.run(requests(engine)))
    assert texts == alone()


def test_it_ends_where_the_grammar_does() -> None:
    """Without a token more: neither blanks nor an end-of-sequence token."""
    with tiny_engine() as engine:
        reply = engine.agent("ada").generate("It is ", regex=TIME, ignore_eos=True)
    assert len(reply.token_ids) == 5 and reply.finish_reason == "stop"
    assert reply.text is not None and re.fullmatch(TIME, reply.text)


def test_samples_stop_strings_and_an_unfinished_text() -> None:
    with tiny_engine() as engine:
        ada = engine.agent("ada")
        samples = ada.generate("x", json_schema=PERSON, n=4, max_tokens=200).samples
        for each in samples:
            jsonschema.validate(json.loads(each.text or ""), PERSON)
        assert len({each.text for each in samples}) > 1
        stopped = ada.generate("x", json_schema=PERSON, stop=(', "mood"',), max_tokens=200)
        assert stopped.finish_reason == "stop" and (stopped.text or "").startswith('{"name": "')
        assert '"age"' in (stopped.text or "") and '"mood"' not in (stopped.text or "")
        cut = ada.generate("x", json_schema=PERSON, max_tokens=9)
        assert cut.finish_reason == "length" and (cut.text or "").startswith('{"name"')


def test_from_an_event_loop() -> None:
    async def both(engine: Engine) -> list[Reply]:
        ada, bob = engine.agent("ada"), engine.agent("bob")
        calls = [each.generate_async("t", regex=TIME, seed=i) for i, each in enumerate((ada, bob))]
        return await asyncio.gather(*calls)

    with tiny_engine() as engine:
        for reply in asyncio.run(both(engine)):
            assert re.fullmatch(TIME, reply.text or "")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"json_schema": {"type": 5}}, "json_schema cannot be compiled: type must be a string"),
        ({"json_schema": {"not": {}}}, "#/not = {} cannot be kept"),
        ({"json_schema": "{"}, "json_schema is no JSON"),
        ({"json_schema": "false"}, "json_schema is False; it must be an object"),
        ({"json_schema": {"const": object()}}, "json_schema is no JSON"),
        ({"regex": "(a"}, "regex cannot be compiled: .*unclosed group"),
        ({"grammar": "start: nobody"}, "grammar cannot be compiled"),
        ({"regex": "a" * 200_000}, "regex of 200000 characters; at most 131072 .*max_chars"),
    ],
)
def test_what_cannot_be_compiled(params: dict[str, Any], message: str) -> None:
    with tiny_engine() as engine:
        with pytest.raises(StructureError, match=message):
            engine.agent("ada").generate("hello", **params)
        assert issubclass(StructureError, RequestError)


def structures(**limits: int) -> Structures:
    eos = frozenset(TOKENIZER.eos_token_ids)
    return Structures(TOKENIZER, TOKENIZER.vocab_size, eos, StructureConfig(**limits))


def test_limits_of_work_and_what_is_kept() -> None:
    costly = SamplingParams(regex="(a|b)*a(a|b){14}c")
    with pytest.raises(StructureError, match="regex cannot be compiled"):
        structures(compile_fuel=20).compile(costly)
    few = structures(max_cached=2)
    made = [few.compile(SamplingParams(regex=f"x{i}")) for i in (0, 1, 2, 2, 0)]
    structures_of = [part(make, Structure) for make in made]
    assert structures_of[2] is structures_of[3] and structures_of[4] is not structures_of[0]
    assert few.compile(SamplingParams()) is None


def test_a_step_that_is_too_much_ends_its_request() -> None:
    settings = StructureConfig(step_fuel=1, step_items=1)
    with tiny_engine(structure=settings) as engine:
        agents = [engine.agent(i) for i in range(2)]
        asked = [
            agents[0].request("a", json_schema=PERSON, max_tokens=50),
            agents[1].request("b", max_tokens=5, ignore_eos=True),
        ]
        first, second = engine.run(asked, return_exceptions=True)
    assert isinstance(first, StructureError) and "limits of StructureConfig" in str(first)
    assert isinstance(second, Reply) and len(second.token_ids) == 5
