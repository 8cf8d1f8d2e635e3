"""Every section of the GPU benchmark runs, at tiny sizes on streams without a GPU. Nothing is
measured; what only a GPU can do is named as left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import races, turns
from benchmarks.gpu.__main__ import Part, main, sections
from benchmarks.gpu.report import Report


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(races, "TURNS", 2)
        patch.setattr(races, "AGENTS", 5)
        patch.setattr(races, "PREFIX", 60)
        arguments = ["--device", "cpu", "--out", str(folder), "--schedules", "1"]
        assert main([*arguments, "--one-process"]) == 0
    text = (folder / "gpu.md").read_text(encoding="utf-8")
    assert "a rehearsal on a CPU" in text and "## " in text
    found: dict[str, Any] = json.loads((folder / "gpu.json").read_text(encoding="utf-8"))
    return found


def test_every_section_ran_and_says_what_it_left_out(whole: dict[str, Any]) -> None:
    assert list(whole["seconds"]) == list(sections())
    why = dict(whole["left_out"])
    assert set(why) <= {
        "flex", "FlashInfer", "turns-8b", "tiny, prefix 150, transformers generate_batch",
        "requests with a schema",
    } | {what for what in why if what.startswith("compilations")}  # fmt: skip
    assert whole["is_rehearsal"] and whole["environment"]["packages"]["torch"]
    assert all(table["rows"] for table in whole["tables"])


def test_floors_of_the_design_are_held(whole: dict[str, Any]) -> None:
    held = "\n".join(line["what"] for line in whole["lines"])
    for what in (
        "page-major",
        "error of",
        "swap in",
        "both ways over one way",
        "SDPA over gathered",
        "compilations while serving",
        "delayed schedules that differ",
        "1B decode step outside kernels",
        "slowed by swapping",
        "adapters: bmm over gathered slots",
        "requests of all kinds",
        "differing bits: decode and prefill",
        "failed cases of sample",
    ):
        assert what in held, what


def test_nothing_is_captured_nor_compiled_while_serving(whole: dict[str, Any]) -> None:
    lines = {line["what"]: line for line in whole["lines"]}
    serving = [line for what, line in lines.items() if "while serving" in what]
    assert serving and all(line["met"] for line in serving)
    assert lines["delayed schedules that differ"]["value"] == 0


def test_arms_are_the_policies_and_turns_are_counted(whole: dict[str, Any]) -> None:
    (table,) = (each for each in whole["tables"] if each["title"].startswith("Agent turns"))
    arms = [*turns.ENGINE_POLICIES, "deadline, reproducible"]
    assert sorted(row[3] for row in table["rows"]) == sorted(arms)
    assert [row[3] for row in table["rows"]][:2] == ["deadline", "lru-swap"]
    assert all(row[4] > 0 and row[5] > 0 for row in table["rows"])


def test_adapters_are_timed_alone_and_in_a_turn(whole: dict[str, Any]) -> None:
    tables = {table["title"]: table["rows"] for table in whole["tables"]}
    alone = tables["Adapters, q, k and v of one layer"]
    assert [row[:3] for row in alone] == [
        [phase, count, 8] for phase in ("decode", "prefill") for count in (1, 3)
    ]
    (turn,) = (rows for title, rows in tables.items() if title.startswith("A turn of 3 agents"))
    assert [row[0] for row in turn] == [0, 1, 3] and all(row[2] > 0 for row in turn)
    assert whole["figures"]["adapters_tax"] > 0


class Dying(Part):
    """The process of ``prefill`` is ended when it is to begin."""

    def go(self, share_s: float) -> None:
        if self.name == "prefill":
            self.process.kill()
        super().go(share_s)


def test_a_section_that_dies_costs_only_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.gpu.__main__.Part", Dying)
    assert main(["roofline", "prefill", "bits", "--device", "cpu", "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert list(found["seconds"]) == ["roofline", "bits"]
    assert "FLOOR MISSED: section prefill runs" in capsys.readouterr().out
    assert all(table["rows"] for table in found["tables"])
    assert found["tables"][-1]["title"] == "Bits that agree"


def test_a_missed_floor_is_a_failure_and_a_missed_goal_is_not() -> None:
    report = Report({}, {})
    report.hold("goal", "a goal", 0.5, least=0.9)
    assert not report.failed
    report.hold("floor", "a floor", 0.5, least=0.75)
    report.hold("floor", "another", 0.5, most=0.75)
    assert [line.what for line in report.failed] == ["a floor"]
    assert "| a floor | floor | ≥ 0.75 | 0.5 | NO |" in report.markdown()


def test_unknown_sections_and_missing_packages_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["warp", "--device", "cpu"]) == 2
    assert "unknown section 'warp'" in capsys.readouterr().out
    monkeypatch.setattr("benchmarks.gpu.__main__.NEEDED", ("numpy", "no_such_package"))
    assert main(["--device", "cpu"]) == 2
    assert "pip install no_such_package" in capsys.readouterr().out
