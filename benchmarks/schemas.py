"""JSON schemas to be followed: drawn by a seeded generator over the keywords of the JSON Schema
Test Suite, or read from a copy of the suite."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DRAFTS = ("draft2020-12", "draft2019-09", "draft7", "draft6", "draft4")
WORDS = ("name", "age", "mood", "x", "y", "items", "a b", "ä", "$id2", "kind")
PATTERNS = (r"^[a-z]{1,4}$", r"^\d{3}-\d{2}$", r"^(on|off)$", r"[A-Z]{2}$", r"^x*y?$")
FORMATS = ("date", "time", "date-time", "ipv4", "uuid", "email")


@dataclass(frozen=True, slots=True)
class Case:
    """``draft`` names the dialect that the schema is judged by."""

    name: str
    schema: Any
    draft: str = "draft2020-12"


def of_suite(folder: Path) -> Iterator[Case]:
    """Every schema of the suite's ``tests`` folder once: of the newest draft that has it."""
    seen = set()
    for draft in DRAFTS:
        for path in sorted((folder / draft).rglob("*.json")):
            for group in json.loads(path.read_text(encoding="utf-8")):
                text = json.dumps(group["schema"], sort_keys=True)
                if text not in seen and "localhost" not in text:  # remote references
                    seen.add(text)
                    yield Case(
                        f"{draft}/{path.stem}: {group['description']}", group["schema"], draft
                    )


def drawn(seed: int) -> Iterator[Case]:
    """Endless."""
    rng = random.Random(seed)
    number = 0
    while True:
        number += 1
        yield Case(f"drawn {number}", schema(rng, 3))


def schema(rng: random.Random, depth: int) -> dict[str, Any]:
    simple = (
        text,
        whole,
        ratio,
        choice,
        lambda rng, depth: {"type": rng.choice(["boolean", "null"])},
    )
    deep = (record, record, listed, either, both, referred)
    return rng.choice(simple if depth <= 0 or rng.random() < 0.3 else deep)(rng, depth)


def bare(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": rng.choice(["boolean", "null"])}


def text(rng: random.Random, depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "string"}
    kind = rng.randrange(4)
    if kind == 0:
        made["minLength"] = rng.randrange(3)
        made["maxLength"] = made["minLength"] + rng.randrange(1, 9)
    elif kind == 1:
        made["pattern"] = rng.choice(PATTERNS)
    elif kind == 2:
        made["format"] = rng.choice(FORMATS)
    return made


def whole(rng: random.Random, depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "integer"}
    if rng.random() < 0.7:
        least = rng.randrange(-200, 200)
        made[rng.choice(["minimum", "exclusiveMinimum"])] = least
        made[rng.choice(["maximum", "exclusiveMaximum"])] = least + rng.randrange(2, 500)
    elif rng.random() < 0.4:
        made["multipleOf"] = rng.randrange(1, 12)
    return made


def ratio(rng: random.Random, depth: int) -> dict[str, Any]:
    if rng.random() < 0.5:
        return {"type": "number"}
    least = rng.randrange(-50, 50) / 4
    return {"type": "number", "minimum": least, "maximum": least + rng.randrange(1, 40) / 4}


def choice(rng: random.Random, depth: int) -> dict[str, Any]:
    values = [None, True, "red", 'it\'s "so"', 3, -2.5, [], [1, "a"], {}, {"k": False}]
    if rng.random() < 0.3:
        return {"const": rng.choice(values)}
    return {"enum": rng.sample(values, rng.randrange(1, 5))}


def record(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(WORDS, rng.randrange(1, 5))
    made: dict[str, Any] = {
        "type": "object",
        "properties": {name: schema(rng, depth - 1) for name in names},
        "required": rng.sample(names, rng.randrange(len(names) + 1)),
    }
    if rng.random() < 0.8:
        made["additionalProperties"] = False
    elif rng.random() < 0.5:
        made["additionalProperties"] = schema(rng, 0)
    return made


def listed(rng: random.Random, depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "array", "items": schema(rng, depth - 1)}
    if rng.random() < 0.3:
        made["prefixItems"] = [schema(rng, 0) for _ in range(rng.randrange(1, 3))]
    if rng.random() < 0.7:
        made["minItems"] = rng.randrange(3)
        made["maxItems"] = made["minItems"] + rng.randrange(4)
    return made


def either(rng: random.Random, depth: int) -> dict[str, Any]:
    if rng.random() < 0.3:
        return {"type": rng.sample(["string", "integer", "null", "boolean"], 2)}
    word = rng.choice(["anyOf", "anyOf", "oneOf"])
    return {word: [schema(rng, depth - 1) for _ in range(rng.randrange(1, 4))]}


def both(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"allOf": [record(rng, depth - 1), record(rng, depth - 1)]}


def referred(rng: random.Random, depth: int) -> dict[str, Any]:
    link = {
        "type": "object",
        "properties": {"v": schema(rng, 0), "next": {"anyOf": [{"$ref": "#/$defs/link"},
                                                               {"type": "null"}]}},
        "required": ["v", "next"],
        "additionalProperties": False,
    }  # fmt: skip
    if depth < 3:  # definitions stand at the root
        return {"type": "array", "items": schema(rng, 0), "maxItems": 2}
    return {"$ref": "#/$defs/link", "$defs": {"link": link}}
