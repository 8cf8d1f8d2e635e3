"""The examples of docs/distance.md, run in order on one engine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scalesim.engine import Engine
from scalesim.testing.tag_parts import tag_parts

PAGE = Path(__file__).parents[2] / "docs" / "distance.md"


def test_the_examples_run(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 7
    with Engine(tag_parts(device_pages=32, host_pages=32)) as engine:
        for name in ("ada", "bob", "planner", "writer", "critic"):
            engine.agent(name)
        names: dict[str, object] = {"engine": engine}
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
            while engine.step():
                pass
        said = {name for name, score in engine.source_scores().items()}
    assert {"plan", "proximity", "learned", "graph", "turns", "predrawn", "bell"} <= said
    assert "declared" in capsys.readouterr().out
    assert not caplog.records  # no source failed
