"""Patterns of adapters: they match as Python's ``re`` does, and no pattern can stop the process."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from scalesim.errors import AdapterError
from scalesim.model.adapters.patterns import MAX_PATTERN, Patterns
from scalesim.model.adapters.peft import read_adapter
from tests.model.adapter_folders import write_adapter
from tests.model.conftest import TINY

KEY = "model.layers.10.self_attn.q_proj"
REAL = [
    r".*(q|v)_proj$",
    r".*\.(q_proj|k_proj|v_proj|o_proj)",
    r"^(?!.*vision).*(?:q_proj|v_proj)$",
    r"model\.layers\.(?:1[0-9]|2\d)\.self_attn\.[qv]_proj",
    r"(?i).*SELF_ATTN.*",
    r"(?=.*layers)(?=.*\bq_proj\b).+",
    r".*(?<=self_attn\.)q_proj",
    r".*(?<!mlp\.)[a-z]+_proj",
    r"(?P<all>.*)",
    r"[^.]+(?:\.[^.]+){4}",
    r"(?x) model \. layers .* # the rest",
    r"\w+\.\D+\.\d{1,2}\..*?\Z",
    r"decoder.*",
    r"()*model.*|x",
]


@pytest.mark.parametrize("pattern", REAL)
@pytest.mark.parametrize("key", [KEY, "model.layers.3.mlp.up_proj", "vision.layers.1.q_proj", ""])
def test_patterns_as_people_write_them(pattern: str, key: str) -> None:
    whole = pattern if pattern.startswith("(?i)") or "(?x)" in pattern else rf"(?:{pattern})\Z"
    assert Patterns().match(whole, key) == (re.match(whole, key) is not None)


def random_pattern(rng: random.Random, depth: int) -> str:
    """Any pattern that is run, over three letters."""
    atoms = ["a", "b", "c", ".", "[ab]", "[^a]", r"\w", r"\d", "(?:)", r"\b", "^", "$", r"\B"]
    if depth == 0:
        return rng.choice(atoms)

    def inner() -> str:
        return random_pattern(rng, depth - 1)

    match rng.randrange(7):
        case 0:
            return inner() + inner()
        case 1:
            return f"(?:{inner()}|{inner()})"
        case 2:
            repeat = rng.choice(["*", "+", "?", "{2}", "{1,3}", "{2,}", "*?", "+?", "{0,2}?"])
            return f"(?:{inner()}){repeat}"
        case 3:
            return f"({inner()}){inner()}"
        case 4:
            return f"(?{rng.choice('=!')}{inner()}){inner()}"
        case 5:
            return f"{inner()}(?<{rng.choice('=!')}{rng.choice(['a', 'ab', '[bc]a'])})"
        case _:
            return inner()


def test_random_patterns_match_as_re_does() -> None:
    rng, patterns, matched = random.Random(0), Patterns(1 << 40), 0
    for _ in range(3000):
        pattern = random_pattern(rng, rng.randrange(4))
        text = "".join(rng.choice("abc1") for _ in range(rng.randrange(1, 7)))
        want = re.match(pattern, text) is not None
        matched += want
        assert patterns.match(pattern, text) == want, (pattern, text)
        whole = rf"(?:{pattern})\Z"
        assert patterns.match(whole, text) == (re.match(whole, text) is not None), (whole, text)
    assert 500 < matched < 2500


CATASTROPHES = [
    r"(?:[a-z_.0-9]+)+X",
    r"(a|a|[a-z._0-9]+)*X",
    r"(.*)*(.*)*(.*)*(.*)*X",
    r"((((((.+)+)+)+)+)+)+X",
    r"(?:(?:.?){50}){50}X",
    r".{0,60000}.{0,60000}.{0,60000}.{0,60000}X",
    r"(?:.{1000}){1000}",
    r"(?:(?:.*)*|(?:.*)*)*(?=(?:.*.*)*X)X",
    "(?:" * 60 + ".*" + ")*" * 60 + "X",
    "(.*)" * 100 + "X",
    r"(?!(?:.+.+)+X).*(?:.+.+)+X",
]
FIELDS = {
    "target_modules": lambda pattern: pattern,
    "exclude_modules": lambda pattern: pattern,
    "layers_pattern": lambda pattern: [pattern],
    "rank_pattern": lambda pattern: {pattern: 2},
    "alpha_pattern": lambda pattern: {pattern: 2},
}


@pytest.mark.parametrize("pattern", CATASTROPHES)
def test_no_pattern_takes_long(pattern: str) -> None:
    """In steps, which are what it costs: far fewer than one adapter may take."""
    assert Patterns(1 << 18).match(pattern, KEY) is False


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_takes_long(field: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {field: FIELDS[field](CATASTROPHES[0])}
    if field == "layers_pattern":
        settings["layers_to_transform"] = [0]
    folder = write_adapter(tmp_path / "a", TINY, 2, **settings)
    try:
        read_adapter(folder, TINY, torch.float32, 8192)  # a pattern that matches nothing is fine
    except AdapterError as error:
        assert str(folder) in str(error)


def test_steps_run_out() -> None:
    patterns = Patterns(100)
    with pytest.raises(AdapterError, match=r"takes too many steps"):
        for _ in range(100):
            patterns.match(r".*q_proj", KEY)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a)\1", r"(?P<x>a)(?P=x)", r"(a)?(?(1)b|c)", r"(?i:a)", "(", "[", "*",
        "a{9" + "9" * 30 + "}", "(?<=a*)b",
    ],
)  # fmt: skip
def test_what_is_not_run_is_refused(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="pattern"):
        Patterns().match(pattern, "aaaabbb")
    folder = write_adapter(tmp_path / "a", TINY, target_modules=".*" + pattern)
    with pytest.raises(AdapterError, match=r"adapter .*adapter_config\.json"):
        read_adapter(folder, TINY, torch.float32, 8192)


def test_long_patterns_are_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", TINY, target_modules="a" * (MAX_PATTERN + 1))
    with pytest.raises(AdapterError, match="a pattern of 513 characters; 512 are run"):
        read_adapter(folder, TINY, torch.float32, 8192)
