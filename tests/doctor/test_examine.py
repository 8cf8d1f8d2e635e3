"""A probe that raises, crashes or hangs is a finding; the others still answer."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalesim.doctor import Section, Settings, examine
from scalesim.doctor.__main__ import main, probe
from scalesim.doctor.children import PROBES, Ran, how_it_ended, sections_in, spawn_child

NAMES = st.lists(st.sampled_from(PROBES), unique=True, max_size=6)
ERRORS = st.sampled_from(
    [ValueError, OSError, RuntimeError, ImportError, AssertionError, UnicodeError, KeyError]
)


@given(NAMES, st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_every_probe_is_answered_once_wherever_children_die(
    names: list[str], lives: list[int]
) -> None:
    died: list[str] = []

    def spawn(left: Sequence[str], settings: Settings) -> Ran:
        alive = lives[len(died) % len(lives)]
        if alive < len(left):
            died.append(left[alive])
        return Ran([Section(name) for name in left[:alive]], "it was ended by SIGSEGV")

    sections = examine(Settings(model="folder", disk="folder"), names, spawn)
    assert [section.name for section in sections] == names
    assert [section.name for section in sections if section.findings] == died
    for section in sections:
        assert all("SIGSEGV" in finding.text for finding in section.findings)


@given(st.binary(), NAMES)
def test_no_output_of_a_child_is_too_odd(output: bytes, names: list[str]) -> None:
    right = b"\n".join(json.dumps(Section(name).to_json()).encode() for name in names)
    assert [section.name for section in sections_in(right, names)] == names
    mixed = output + b"\n" + right + b"\n" + output
    assert [section.name for section in sections_in(mixed, names)] == names
    assert sections_in(output, names) == []


@given(st.text(), st.text(), st.booleans())
def test_a_section_survives_the_pipe(text: str, knob: str, fact: bool) -> None:
    section = Section("host", {text: text, "yes": fact, "none": None, "bytes": 2**62})
    section.find("warning", text, knob)
    assert Section.from_json(json.loads(json.dumps(section.to_json()))) == section


@given(ERRORS, st.text())
def test_a_probe_that_raises_is_an_error_with_its_words(kind: type[Exception], words: str) -> None:
    def broken(settings: Settings) -> Section:
        raise kind(words)

    module = ModuleType("scalesim.doctor.host")
    module.probe = broken  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "scalesim.doctor.host", module)
        found = probe("host", Settings())
    assert [finding.level for finding in found.findings] == ["error"]
    assert kind.__name__ in found.findings[0].text
    json.dumps(found.to_json()).encode()


def test_a_probe_that_is_not_there_is_an_error() -> None:
    assert "ModuleNotFoundError" in probe("nothing", Settings()).findings[0].text


def test_the_child_prints_a_line_for_each_probe() -> None:
    out = io.StringIO()
    main(json.dumps({"names": ["versions", "nothing"], "settings": {}}), out)
    assert [json.loads(line)["name"] for line in out.getvalue().splitlines()] == [
        "versions",
        "nothing",
    ]


def test_without_a_model_or_a_disk_nobody_asks_for_one() -> None:
    asked: list[str] = []

    def spawn(left: Sequence[str], settings: Settings) -> Ran:
        asked.extend(left)
        return Ran([Section(name) for name in left], "")

    examine(Settings(), spawn=spawn)
    assert not {"disk", "model"} & set(asked)
    examine(Settings(model="folder", disk="folder"), spawn=spawn)
    assert asked[-2:] == ["disk", "model"]


# -- real children -------------------------------------------------------------------------------

ODD_TORCH = {
    "missing": "raise ImportError('libcudart.so.12: cannot open shared object file')",
    "aborts": "import os; os.abort()",
    "exits": "raise SystemExit(3)",
    "talks": "print('torch says hello'); raise OSError('[Errno 22] nothing')",
}


@pytest.mark.parametrize("how", ODD_TORCH)
def test_a_torch_that_cannot_be_loaded(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(ODD_TORCH[how])
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *sys.path]))
    found = examine(Settings(), ["versions", "device", "kernels"])
    assert [section.name for section in found] == ["versions", "device", "kernels"]
    assert found[0].facts["torch"]  # its version is read without it
    for section in found[1:]:
        assert [finding.level for finding in section.findings] == ["error"]
    word = {"missing": "libcudart", "aborts": "SIGABRT", "exits": "code 3", "talks": "Errno 22"}
    assert word[how] in found[1].findings[0].text


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    found = examine(Settings(), ["versions", "host"])
    assert all("no process could be started" in each.findings[0].text for each in found)


def test_a_child_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("import threading; threading.Event().wait()")
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *sys.path]))
    ran = spawn_child(["device"], Settings(), seconds_each=2.0)
    assert (ran.sections, ran.reason) == ([], "no answer within 2 s")


@given(st.integers(-70, 255), st.binary())
def test_every_end_has_words(code: int, stderr: bytes) -> None:
    assert how_it_ended(code, stderr).startswith("its process ")
