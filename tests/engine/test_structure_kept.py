"""A finished text keeps its structure, or its call ends with ``StructureError``: tried without a
model, with whatever the masks allow, against the package jsonschema and Python's ``re``.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from scalesim.config import StructureConfig
from scalesim.errors import RequestError, ScaleSimError, StructureError
from scalesim.model.text.detokenizer import BYTE_ALPHABET
from scalesim.model.text.tokenizer import ByteTokenizer, HFTokenizer
from scalesim.requests.prompt import TextModel
from scalesim.sampling.grammar import Structures
from scalesim.sampling.json_schema import KEPT, REFUSED, kept_schema, narrow_pattern
from scalesim.sampling.params import SamplingParams
from scalesim.sampling.schema_check import SchemaCheck
from tests.engine.structure_play import allowed, bytes_only, play, schema_params
from tests.engine.world import tiny_engine

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

NUMBER, INTEGER, STRING = {"type": "number"}, {"type": "integer"}, {"type": "string"}
NULL, ARRAY, OBJECT = {"type": "null"}, {"type": "array"}, {"type": "object"}
DIGIT = {**INTEGER, "minimum": 0, "maximum": 9}

EDGES: list[Any] = [
    {**NUMBER, "exclusiveMinimum": 0},
    {**NUMBER, "exclusiveMaximum": 0},
    {**NUMBER, "exclusiveMinimum": 0, "exclusiveMaximum": 0.001},
    {**NUMBER, "minimum": 0, "exclusiveMaximum": 1},
    {**NUMBER, "exclusiveMinimum": -1, "exclusiveMaximum": 1},
    {**NUMBER, "exclusiveMinimum": 1, "minimum": 1, "maximum": 2},
    {**NUMBER, "minimum": 1e-20, "maximum": 1},
    {**NUMBER, "minimum": 0.1 + 0.2},
    {**NUMBER, "minimum": -0.5, "maximum": -0.25},
    {**NUMBER, "multipleOf": 3},
    {**NUMBER, "multipleOf": 0.1},
    {**NUMBER, "multipleOf": 1e-10},
    {"allOf": [{**INTEGER, "multipleOf": 4}, {**INTEGER, "multipleOf": 6}]},
    {**INTEGER, "exclusiveMinimum": 0, "maximum": 3},
    {**INTEGER, "exclusiveMinimum": 0.5, "exclusiveMaximum": 3.5},
    {**INTEGER, "minimum": 2**53 + 1, "maximum": 2**53 + 3},
    {**INTEGER, "minimum": 2**63},
    {**INTEGER, "maximum": -(2**64)},
    {**INTEGER, "minimum": -(10**300), "maximum": 10**300},
    {"const": 12345678901234567890123},
    {"enum": [{"a": [2**60]}, 1]},
    {"enum": [1.0, -0.0, 1e22, 0.1, "é\u2028\x00\x7f/", None, [1, {"a": 2}], True]},
    {"type": ["integer", "null"], "exclusiveMinimum": -2, "maximum": 2},
    {"minimum": 5, "maxLength": 2, "maxItems": 1, "maxProperties": 1},
    {**STRING, "minLength": 2, "maxLength": 2},
    {**STRING, "maxLength": 4, "pattern": "^\\d+$"},
    {**STRING, "maxLength": 3, "pattern": "^[\\w.]+$"},
    {**STRING, "maxLength": 3, "pattern": "^[^\\s]\\S.$"},
    {**STRING, "pattern": "^[[:alpha:]]$"},
    {**STRING, "pattern": "^[a&&b]$"},
    {**STRING, "pattern": "(?i)^ab$"},
    {**STRING, "pattern": "^a++a$"},
    {**STRING, "pattern": "^(a|b)c?$"},
    {**STRING, "format": "date"},
    {**STRING, "format": "date-time"},
    {**STRING, "format": "ipv4"},
    {**STRING, "format": "ipv6"},
    {**ARRAY, "items": DIGIT, "minItems": 2, "maxItems": 3},
    {**ARRAY, "prefixItems": [DIGIT, NULL], "items": False},
    {**ARRAY, "prefixItems": [DIGIT], "items": NULL, "maxItems": 3},
    {**ARRAY, "uniqueItems": True, "items": DIGIT, "maxItems": 3},
    {**OBJECT, "patternProperties": {"^a": DIGIT}, "additionalProperties": False},
    {**OBJECT, "patternProperties": {"^a": DIGIT, "^b$": NULL}, "maxProperties": 2},
    {**OBJECT, "patternProperties": {"^\\d$": NULL}, "additionalProperties": DIGIT},
    {**OBJECT, "patternProperties": {"^.$": NULL}, "additionalProperties": False},
    {**OBJECT, "minProperties": 2, "additionalProperties": NULL},
    {**OBJECT, "minProperties": 3, "maxProperties": 3, "patternProperties": {"^[a-d]$": NULL},
     "additionalProperties": False},
    {**OBJECT, "properties": {"a": DIGIT}, "additionalProperties": {**STRING, "maxLength": 1}},
    {**OBJECT, "required": ["z"], "additionalProperties": DIGIT, "maxProperties": 2},
    {"oneOf": [DIGIT, {"const": 5}]},
    {"oneOf": [NULL, DIGIT, {**STRING, "maxLength": 1}]},
    {"oneOf": [{**NUMBER, "maximum": 1e-16, "minimum": 0}, {**NUMBER, "exclusiveMinimum": 0}]},
    {"anyOf": [{**INTEGER, "minimum": 5, "maximum": 6}, NULL], "enum": [None, 5, 7]},
    {"allOf": [{**OBJECT, "properties": {"a": DIGIT}, "required": ["a"]},
               {"properties": {"a": {"minimum": 4}}, "additionalProperties": False}]},
    {"$ref": "#/$defs/n", "$defs": {"n": {**ARRAY, "items": {"$ref": "#/$defs/n"}, "maxItems": 2}}},
    {"$ref": "#/components/x", "components": {"x": {**NUMBER, "exclusiveMinimum": 0}}},
    {"$ref": "#/a~1b/c%25", "a/b": {"c%": {**NUMBER, "multipleOf": 0.3}}},
    {"$ref": "#"},
    {"not": NULL, "x-guidance": {"lenient": True}, "enum": [1, None]},
    {"oneOf": [DIGIT, {**INTEGER, "minimum": 3}], "x-guidance": {"coerce_one_of": True}},
    {"if": {"const": 1}, "then": {"const": 2}},
    {"$schema": "http://json-schema.org/draft-04/schema#", **NUMBER, "minimum": 0, "maximum": 2,
     "exclusiveMinimum": True, "exclusiveMaximum": False},
    {"$schema": "http://json-schema.org/draft-04/schema#", "not": {}, "const": 5, **DIGIT},
    True,
]  # fmt: skip


def outcome(schema: Any, seed: int) -> str:
    """``"kept"``, ``"cut"``, or how it was refused; fails where a finished text is not valid."""
    asked = json.dumps(schema) if schema is True else schema
    try:
        text, reason = play(schema_params(asked), seed)
    except StructureError as error:
        assert "json_schema" in str(error), error
        return "ended" if "finished text" in str(error) else "refused"
    if reason == "length":
        return "cut"
    value = json.loads(text)
    jsonschema.validate(value, schema, format_checker=jsonschema.FormatChecker())
    return "kept"


@pytest.mark.parametrize("schema", EDGES, ids=lambda schema: json.dumps(schema)[:60])
def test_at_the_edges_of_what_a_schema_can_say(schema: Any) -> None:
    if outcome(schema, 0) != "refused":
        found = {outcome(schema, seed) for seed in range(1, 12)}
        assert "kept" in found and "refused" not in found, found


DRAFTS = [getattr(jsonschema, f"Draft{draft}Validator")
          for draft in ("3", "4", "6", "7", "201909", "202012")]  # fmt: skip


@pytest.mark.parametrize("keyword", sorted({word for each in DRAFTS for word in each.VALIDATORS}))
def test_every_keyword_of_every_draft_is_kept_or_refused(keyword: str) -> None:
    """What no list has would be taken for an annotation."""
    assert keyword in KEPT | REFUSED | {"$schema"}


@pytest.mark.parametrize("keyword", sorted(REFUSED))
def test_what_cannot_be_kept_is_refused_wherever_it_stands(keyword: str) -> None:
    for schema in (
        {keyword: {}}, {"properties": {"a": {keyword: True}}}, {"anyOf": [NULL, {keyword: [NULL]}]},
        {"$ref": "#/x/y", "x": {"y": {keyword: {}}}}, {**ARRAY, "items": [{keyword: {}}]},
    ):  # fmt: skip
        with pytest.raises(StructureError, match=re.escape(keyword)):
            kept_schema(schema)
    named = {**OBJECT, "properties": {keyword: NULL}, "required": [keyword]}
    assert kept_schema({**named, "additionalProperties": False})["required"] == [keyword]


def drawn_schema(rng: random.Random, depth: int = 3) -> Any:
    """A schema of what may be said, sound or not."""

    def bound() -> float:
        return rng.choice(
            [0, 1, -1, 5, 10, 99, 100, 0.5, -0.25, 1e-3, 2.75, rng.randint(-999, 999)]
        )

    def maybe(found: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in found.items() if rng.random() < 0.4}

    def below() -> Any:
        return drawn_schema(rng, depth - 1)

    kinds = ["number", "integer", "string", "enum", "null", "boolean"]
    kind = rng.choice(
        kinds if depth == 0 else [*kinds, "array", "object", "anyOf", "allOf", "oneOf"]
    )
    match kind:
        case "number" | "integer":
            return {"type": kind, **maybe(
                {"minimum": bound(), "maximum": bound(), "exclusiveMinimum": bound(),
                 "exclusiveMaximum": bound(), "multipleOf": rng.choice([1, 2, 3, 7, 10, 0.5])}
            )}  # fmt: skip
        case "string":
            patterns = [
                "^a",
                "b$",
                "^[ab]{1,3}$",
                "\\d",
                "^\\w+$",
                ".",
                "^[^a-z]*$",
                "x|^y$",
                "^\\W\\D\\S$",
                "^[\\S]+$",
                "^[^\\w][^\\s]$",
                "^[\\W_]{2}$",
            ]
            return {"type": kind, **maybe(
                {"minLength": rng.randint(0, 3), "maxLength": rng.randint(1, 5),
                 "pattern": rng.choice(patterns)}
            )}  # fmt: skip
        case "enum":
            values = [1, 1.0, 2.5, "a", "é\n", None, True, [], [1], {}, {"a": None}, -7, 1e30]
            return {"enum": rng.sample(values, rng.randint(1, 4))}
        case "array":
            return {"type": kind, "maxItems": rng.randint(0, 3), **maybe(
                {"items": below(), "prefixItems": [below()], "minItems": rng.randint(0, 3)}
            )}  # fmt: skip
        case "object":
            names = rng.sample(["a", "b", "ab", "ä"], 2)
            return {"type": kind, **maybe(
                {"properties": {name: below() for name in names}, "required": names[:1],
                 "additionalProperties": rng.choice([False, below()]),
                 "patternProperties": {rng.choice(["^a", "b", "^x$"]): below()},
                 "minProperties": rng.randint(0, 2), "maxProperties": rng.randint(0, 3)}
            )}  # fmt: skip
        case "null" | "boolean":
            return {"type": kind}
        case _:
            return {
                kind: [below() for _ in range(rng.randint(1, 3))],
                **maybe({"minimum": bound()}),
            }


def test_random_schemas() -> None:
    found: Counter[str] = Counter()
    for seed in range(300):
        schema = drawn_schema(random.Random(seed))
        for draw in range(2):
            try:
                found[outcome(schema, seed + draw)] += 1
            except Exception as error:
                raise AssertionError(f"seed {seed}, draw {draw}: {json.dumps(schema)}") from error
    assert found["kept"] > 250, found
    assert found["ended"] < 40, found


def test_random_expressions() -> None:
    """The whole text is what ``re`` calls a full match."""
    rng, kept = random.Random(0), 0
    atoms = ["a", "b", ".", "[a-c]", "[^a]", "\\d", "\\n", "é", "(ab|c)", "(a|)", "\\.", "(?i:x)"]
    for seed in range(150):
        parts = [rng.choice(atoms) + rng.choice(["", "", "?", "*", "+", "{1,2}", "|"])
                 for _ in range(rng.randint(1, 5))]  # fmt: skip
        regex = "".join(parts)
        try:
            text, reason = play(SamplingParams(regex=regex), seed)
        except StructureError:
            continue
        if reason == "stop":
            kept += 1
            assert re.fullmatch(regex, text), (regex, text)
    assert kept > 100


@pytest.mark.parametrize(
    "regex", ["(?=a)a", "a\\b", "\\Ba", "(a)\\1", "a^b", "(?<!a)b", "[b-a]", "*"]
)
def test_expressions_that_are_no_automaton_are_refused(regex: str) -> None:
    with pytest.raises(StructureError, match="regex"):
        play(SamplingParams(regex=regex), 0)


# -- the check of the finished text ---------------------------------------------------------------


def test_the_check_agrees_with_jsonschema_on_values_it_did_not_make() -> None:
    """Each text is judged by the schemas of others."""
    texts: list[str] = []
    schemas: list[Any] = []
    for seed in range(150):
        schema = drawn_schema(random.Random(1000 + seed), 2)
        try:
            text, reason = play(schema_params(schema), seed)
        except StructureError:
            continue
        if reason == "stop":
            texts.append(text)
            schemas.append(schema)
    compared: Counter[bool] = Counter()
    for schema in schemas:
        if "patternProperties" in json.dumps(schema) or "pattern" in json.dumps(schema):
            continue  # those are the automaton's
        check = SchemaCheck(kept_schema(schema), 10_000)
        validator = jsonschema.Draft202012Validator(schema)
        for text in texts[:60]:
            theirs = validator.is_valid(json.loads(text))
            assert (check.error(text) is None) == theirs, (schema, text, check.error(text))
            compared[theirs] += 1
    assert min(compared.values()) > 300, compared


def test_the_check_is_bounded_whatever_the_schema() -> None:
    """2**40 ways to look at one value."""
    defs = {f"a{i}": {"oneOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)}
    check = SchemaCheck({"$ref": "#/$defs/a0", "$defs": {**defs, "a40": NULL}}, 1000)
    assert "max_checks" in str(check.error("1"))
    assert "max_checks" in str(SchemaCheck({"$ref": "#"}, 1000).error("1"))
    assert SchemaCheck({}, 1000).error("[" * 100_000) is not None
    assert SchemaCheck({"minimum": 1}, 10).error("1e999999999999999999999") is not None
    assert SchemaCheck(NUMBER, 10).error("9" * 10_000) is None
    start = time.process_time()
    assert SchemaCheck({**INTEGER, "multipleOf": 7}, 10).error("9" * 10_000) is not None
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("pattern", "narrow"),
    [
        ("^\\d[\\w.]\\s$", "^[0-9][A-Za-z0-9_.][ \\t\\n\\r\\f\\v]$"),
        ("[^\\d].", "[^\\p{Nd}][^\\n\\r\\u2028\\u2029]"),
        ("\\S[\\W]", "[!-~][\\x00-/:-@\\x5b-\\x5e`\\x7b-\\x7f]"),
        ("\\\\d\\.", "\\\\d\\."),
        ("a\\++", "a\\++"),
    ],
)
def test_patterns_are_narrowed_to_what_all_read_alike(pattern: str, narrow: str) -> None:
    assert narrow_pattern(pattern, "#") == narrow


ECMA = {
    "d": "[0-9]", "w": "[A-Za-z0-9_]", "D": "[^0-9]", "W": "[^A-Za-z0-9_]",
    ".": "[^\n\r\u2028\u2029]",
    "s": "[\t\n\v\f\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff]",
    "S": "[^\t\n\v\f\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff]",
}  # fmt: skip
"""Of JavaScript with the flag u, which JSON Schema means."""


@pytest.mark.parametrize(
    "one", ["\\d", "\\w", "\\s", "\\D", "\\W", "\\S", ".", "[^\\d]", "[^\\w]", "[^\\s]"]
)
def test_each_class_lets_only_through_what_every_reader_has(one: str) -> None:
    structures = bytes_only()
    make = structures.compile(schema_params({**STRING, "pattern": f"^{one}$"}))
    assert make is not None
    theirs, let = re.compile(f"^{one}$"), 0
    ecma = ECMA[one.strip("[^\\]") or "."]
    ecma = ecma if not one.startswith("[^") else "(?!" + ecma + ")."
    rng = random.Random(0)
    for code in [*range(1, 0x500), *rng.sample(range(0x500, 0xD800), 700), 0x2028, 0x180E, 0xFEFF]:
        text = json.dumps(chr(code), ensure_ascii=False).encode()
        matcher = make().matcher
        if matcher.try_consume_tokens(list(text)) == len(text) and matcher.is_accepting():
            let += 1
            assert theirs.search(chr(code)), hex(code)
            assert re.fullmatch(ecma, chr(code), re.DOTALL), hex(code)
    assert let >= (6 if "s" in one and one[0] != "[" else 10)


# -- tokenizers -----------------------------------------------------------------------------------


def byte_level(special: list[str], beyond: dict[str, int] | None = None) -> HFTokenizer:
    """Bytes, ``special`` behind them, and tokens at ids far ``beyond``."""
    vocab = {BYTE_ALPHABET[i]: i for i in range(256)} | (beyond or {})
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(token, special=True) for token in special])
    return HFTokenizer(backend, {"eos_token": special[0]} if special else {})


def byte_fallback() -> HFTokenizer:
    """As Llama 2's: bytes have tokens of their own, and a text loses the blank that it begins
    with."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *'▁ab019{}":,.-']
    tokens += ["▁ab", "▁1"]
    backend = tokenizers.Tokenizer(
        models.BPE({t: i for i, t in enumerate(tokens)}, [], byte_fallback=True, unk_token="<unk>")
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return HFTokenizer(backend, {"eos_token": "</s>"})


TOKENIZERS: dict[str, tuple[Any, int, list[int]]] = {
    "as many": (byte_level(["</s>", "<s>"]), 258, [256]),
    "the tokenizer has more": (byte_level(["</s>", "<s>", "<image>", "<audio>"]), 258, [256]),
    "far more": (byte_level(["</s>", *(f"<{i}>" for i in range(100))]), 257, [256]),
    "its end among those": (byte_level(["</s>", "<a>", "<b>"]), 257, [256, 258]),
    "the model has more": (byte_level(["</s>", "<s>"]), 320, [256]),
    "ends among those": (byte_level(["</s>", "<s>"]), 320, [256, 300, 900]),
    "holes": (byte_level(["</s>"], {"ab": 300, "01": 310}), 320, [258]),
    "holes, fewer rows": (byte_level(["</s>"], {"ab": 300, "01": 310}), 305, [258]),
    "several ends": (byte_level(["</s>", "<end>", "<stop>"]), 259, [256, 257, 258]),
    "no end": (byte_level(["<s>"]), 257, []),
    "byte fallback": (byte_fallback(), 273, [2]),
    "byte fallback, more rows": (byte_fallback(), 512, [2]),
    "bytes, fewer rows": (ByteTokenizer(), 258, [257]),
    "bytes, more rows": (ByteTokenizer(), 400, [257]),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_and_models_of_other_sizes(name: str) -> None:
    """No mask has a token that the model has no row for, or one without a text."""
    tokenizer, rows, eos = TOKENIZERS[name]
    structures = Structures(tokenizer, rows, frozenset(eos), StructureConfig())
    most = tokenizer.num_ids if isinstance(tokenizer, HFTokenizer) else tokenizer.vocab_size
    anything = structures.compile(SamplingParams(grammar='start: /(?s:.)*/ "."'))
    assert anything is not None
    ids = allowed(anything())
    assert ids and max(ids) < min(rows, most)
    schema = {
        **OBJECT,
        "properties": {"a": DIGIT},
        "required": ["a"],
        "additionalProperties": False,
    }
    for seed in range(8):
        text, reason = play(schema_params(schema), seed, structures, tokenizer)
        assert reason == "stop"
        jsonschema.validate(json.loads(text), schema)
        try:
            text, reason = play(SamplingParams(regex=" ?é[0-9]+\\."), seed, structures, tokenizer)
        except StructureError as error:
            assert "not what the grammar saw" in str(error)
            continue
        assert reason == "length" or re.fullmatch(" ?é[0-9]+\\.", text)


def test_a_schema_within_a_grammar_is_refused() -> None:
    with pytest.raises(StructureError, match="give it as json_schema="):
        play(SamplingParams(grammar='start: %json {"type": "number", "exclusiveMinimum": 0}'), 0)


@pytest.mark.parametrize(
    ("form", "right", "wrong"),
    [
        ("date", "2024-02-29", "2023-02-29"),
        ("date-time", "2024-02-29t00:00:00z", "0000-01-01T00:00:00Z"),
        ("time", "23:59:59Z", "12:00:60Z"),
        ("ipv4", "1.2.3.4", "1.2.3.256"),
        ("ipv6", "::1", "1::2::3"),
    ],
)
def test_formats_that_an_automaton_reads_too_loosely(form: str, right: str, wrong: str) -> None:
    check = SchemaCheck({"format": form}, 10)
    assert check.error(json.dumps(right)) is None and check.error(json.dumps(wrong)) is not None


def test_a_token_without_text_is_never_asked_for() -> None:
    tokenizer = byte_level(["</s>", "<s>"])
    structures = Structures(tokenizer, 320, frozenset([256]), StructureConfig())
    with pytest.raises(StructureError, match="no token of this tokenizer can begin"):
        structures.compile(SamplingParams(grammar="start: <[300]>"))
    constraint = structures.compile(SamplingParams(grammar='start: "a" <[300]> "b"'))
    assert constraint is not None
    one = constraint()
    one.push(97)
    with pytest.raises(StructureError, match="asks for a token from 258 on"):
        allowed(one)


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    class Own(ByteTokenizer):
        pass

    class Foreign:
        vocab_size = 300
        eos_token_ids = frozenset({1})

    assert Structures(Own(), 261, frozenset({257})).compile(SamplingParams(regex="a"))
    foreign: Any = Foreign()
    with pytest.raises(StructureError, match="no Foreign; constrain the tokens with mask="):
        Structures(foreign, 300, frozenset({1})).compile(SamplingParams(regex="a"))


def test_a_text_with_a_token_that_the_model_has_not_is_refused_by_name() -> None:
    tokenizer = byte_level(["</s>", "<s>", "<image>"])
    model = TextModel(258, frozenset({256}), 100, 100, tokenizer)
    assert model.token_ids("a<s>").tolist() == [97, 257]
    with pytest.raises(RequestError, match=r"the text has '<image>', token 258 .* ends at 257"):
        model.token_ids("see <image> here")
    with pytest.raises(RequestError, match="token id 258 is outside the vocabulary"):
        model.token_ids([97, 258])


# -- calls ----------------------------------------------------------------------------------------


def test_calls_end_typed_and_harm_nobody() -> None:
    """A number cut short is no finished text; a call's own stop ends a text where it stands."""
    with tiny_engine() as engine:
        ada, bob = engine.agent("ada"), engine.agent("bob")
        asked = [
            ada.request(
                "n = ", json_schema={**NUMBER, "exclusiveMinimum": 0}, max_tokens=20, seed=i
            )
            for i in range(8)
        ]
        asked.append(bob.request("x", max_tokens=4, ignore_eos=True))
        replies = engine.run(asked, return_exceptions=True)
        for reply in replies[:-1]:
            if isinstance(reply, Exception):
                assert isinstance(reply, StructureError)
            elif reply.finish_reason == "stop":
                assert float(reply.text or "") > 0
        assert not isinstance(replies[-1], Exception) and len(replies[-1].token_ids) == 4
        for schema in ({**INTEGER, "minimum": 2**70}, {"const": float("nan")}, {"const": "\ud800"}):
            with pytest.raises(ScaleSimError, match="json_schema"):
                ada.generate("x", json_schema=schema)
        with pytest.raises(RequestError, match=r"regex=.*half a surrogate pair"):
            ada.generate("x", regex="\ud800")
        assert engine.stats.restarts == 0


def test_a_text_that_breaks_its_schema_all_the_same_ends_with_an_error() -> None:
    """Whatever the grammar lets through: here one that is not the schema's."""
    structures = bytes_only()
    make = structures.compile(
        schema_params({**INTEGER, "multipleOf": 3, "maximum": 9, "minimum": 0})
    )
    other = structures.compile(SamplingParams(regex="[0-9]"))
    assert make is not None and other is not None
    constraint = make()
    constraint.matcher = other().matcher
    with pytest.raises(StructureError, match=r"'4' does not keep it: .* multipleOf: 4 against 3"):
        constraint.push(ord("4"))
