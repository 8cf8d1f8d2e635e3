"""``scalesim doctor`` as a user runs it: exit codes, JSON, no traceback."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from scalesim.cli import main
from scalesim.cli.doctor import report, show
from scalesim.doctor import Section
from scalesim.doctor.children import PROBES


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and list(found["facts"]) == [
        name for name in PROBES if name not in ("disk", "model")
    ]
    assert found["facts"]["device"]["taken"] == "cpu"
    assert found["facts"]["link"]["host_to_device_chunks_bytes_per_s"] > 0


def test_errors_are_counted_in_the_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "config.json").write_text("{}")
    assert main(["doctor", str(tmp_path), "--device", "cuda"]) == 1
    said = capsys.readouterr()
    assert "error (device)" in said.out and "error (model)" in said.out
    assert "Traceback" not in said.out + said.err


@pytest.mark.parametrize("model", ["no/such/folder", "."])
def test_a_misspelt_folder_is_named_before_anything_is_measured(
    model: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("scalesim.cli.doctor.examine", lambda settings: pytest.fail("measured"))
    assert main(["doctor", model]) == 2
    assert model in capsys.readouterr().err


def test_a_device_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "abacus"]) == 2
    assert "abacus" in capsys.readouterr().err


facts = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())


@given(
    st.dictionaries(st.sampled_from(["a_bytes", "b_s", "c_bytes_per_s", "d_limit_bytes"]), facts),
    st.text(),
    st.sampled_from(["note", "warning", "error"]),
)
def test_whatever_is_found_can_be_shown(fields: dict[str, object], text: str, level: str) -> None:
    section = Section("host", fields)  # type: ignore[arg-type]
    section.find(level, text, text)  # type: ignore[arg-type]
    show([section], Console(file=StringIO()))
    assert json.loads(json.dumps(report([section])))["ok"] == (level != "error")
