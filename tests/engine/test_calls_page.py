"""The examples of docs/calls.md, run in order as one program."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.world import SHAPE
from tests.model_folders import write_dummy_model
from tests.text.tokenizers_made_here import byte_level

PAGE = Path(__file__).parents[2] / "docs" / "calls.md"
MODEL = "path/to/Qwen2.5-0.5B-Instruct"


def test_the_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert blocks
    tokenizer = byte_level()
    (tmp_path / MODEL).mkdir(parents=True)
    shape = replace(SHAPE, vocab_size=tokenizer.get_vocab_size())
    write_dummy_model(tmp_path / MODEL, shape, seed=1)
    tokenizer.save(str(tmp_path / MODEL / "tokenizer.json"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    said = capsys.readouterr().out
    assert "tokens dropped" in said and "did not end within" in said and "4/4" in said
