"""The examples of docs/sampling.md, run in order on one engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from scalesim.sampling.params import SamplingParams
from tests.engine.world import tiny_engine

PAGE = Path(__file__).parents[2] / "docs" / "sampling.md"

pytest.importorskip("llguidance")


def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    replies = []
    with tiny_engine() as engine:
        names: dict[str, Any] = {"engine": engine}
        for block in re.findall(r"```python\n(.*?)```", text, re.S):
            exec(compile(block, str(PAGE), "exec"), names)
            replies.append(names["reply"])
        assert engine.generate(names["request"]).token_ids
    assert len(replies) == 6
    assert names["best"].token_ids == () and names["surprise"] > 0
    assert replies[-1].text.isdigit() and len(replies[-1].text) == 5
    assert re.fullmatch(r"(Ada|Bob) [a-z]{3,6}\.", replies[-2].text)
    assert "[" in capsys.readouterr().out


def test_every_parameter_is_in_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    for name in SamplingParams.__slots__:
        assert f"`{name}`" in table, name
