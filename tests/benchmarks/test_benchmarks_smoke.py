"""The benchmarks run at tiny sizes, and their tables and files are complete. Nothing is timed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.table import Table
from scalesim_kernels import select

from benchmarks import async_calls, engine, guard, lora, overhead, streaming
from benchmarks.__main__ import BENCHMARKS, main, parser
from benchmarks.report import Report

ENGINE = {"agents": 4, "turns": 2, "prefix": 40, "new": 8, "output": 4, "rounds": 1,
          "batches": [1, 2], "screen_agents": 2, "max_num_seqs": 4, "decodes": 6,
          "threads": 2}  # fmt: skip
OVERHEAD = {"agents": 30, "running": 4, "turns": 30, "settle": 8, "prefix": 32, "pool": 0.8}
ASYNC = {"calls": 40, "agents": 8, "threads": 4, "rounds": 1}


def quick(name: str, *more: str) -> Report:
    return BENCHMARKS[name].run(parser().parse_args([name, "--quick", *more]))


def cells(table: Table) -> list[list[str]]:
    columns = [list(column.cells) for column in table.columns]
    return [[str(cell) for cell in row] for row in zip(*columns, strict=True)]


def titled(report: Report, start: str) -> Table:
    (found,) = [each for each in report.tables if str(each.title).startswith(start)]
    return found


def rows_of(table: Table) -> Sequence[str]:
    return [row[0] for row in cells(table)]


@pytest.fixture(scope="module")
def engine_report() -> Report:
    with pytest.MonkeyPatch.context() as patch:
        for key, value in ENGINE.items():
            patch.setitem(engine.QUICK, key, value)
        return quick("engine", "--static")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for settings, module in ((OVERHEAD, overhead), (ASYNC, async_calls)):
        for key, value in settings.items():
            monkeypatch.setitem(module.QUICK, key, value)
    monkeypatch.setattr(overhead, "LONG", 20)


def test_engine_tables_have_every_arm(engine_report: Report) -> None:
    turns = titled(engine_report, "Turns a second")
    assert set(rows_of(turns)) >= {*engine.PEERS, *engine.OURS}
    assert all(float(row[2]) > 0 and float(row[3]) > 0 for row in cells(turns))
    assert set(rows_of(titled(engine_report, "Prefill and decode"))) >= {
        *engine.PEERS,
        *engine.OURS,
    }
    assert rows_of(titled(engine_report, "Memory")) == list(engine.OURS)
    batches = cells(titled(engine_report, "Choosing"))
    assert len(batches) == 3 * 2 + 1  # three kinds of cache, two sizes, and generate()


def test_engine_arms_give_the_same_texts(engine_report: Report) -> None:
    differing = engine_report.figures["differing_turns"]
    assert all(differing[name] == 0 for name, arm in engine.OURS.items() if arm.reproducible)
    gaps = engine_report.figures["largest_gap_at_first_difference"]
    assert max(gaps.values()) <= engine.NEAR_TIE, gaps


def test_engine_settings_can_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in ENGINE.items():
        monkeypatch.setitem(engine.QUICK, key, value)
    monkeypatch.setattr(engine, "TUNED", ((2, 4), (16, 32)))
    report = quick("engine", "--tune")
    assert len(cells(report.tables[0])) == 4


@pytest.mark.usefixtures("small")
def test_overhead_tables_have_every_arm_and_gc_setting() -> None:
    report = quick("overhead")
    assert len(report.tables) == 3
    for table in report.tables:
        assert len(cells(table)) == 2 * len(overhead.ARMS)
        assert all(all(row) for row in cells(table))
    for modes in report.figures.values():
        assert modes["default gc"]["turns"] >= OVERHEAD["turns"]
        assert modes["decode"]["num_steps"] > 0


@pytest.mark.usefixtures("small")
def test_async_arms_give_the_same_texts() -> None:
    report = quick("async")
    assert rows_of(report.tables[0]) == list(async_calls.ARMS)
    assert all(figures["texts_differing"] == 0 for figures in report.figures.values())


def test_streams_give_the_same_texts() -> None:
    report = quick("streaming", "--stop", "2")
    assert rows_of(report.tables[0]) == list(streaming.ARMS)
    same = {what: met for what, _, _, met in report.verdicts if "texts that differ" in what}
    assert len(same) == 2 and all(same.values())


def test_adapters_pack_well_and_share_the_world() -> None:
    report = quick("adapters")
    assert len(rows_of(report.tables[0])) == 9
    assert all(met for *_, met in report.verdicts)
    used = report.figures["world"]
    # the world once (and what a partial block copies), against once an agent
    assert used["private"] >= 50 * 4096 // 16 > 40 * (used["activated"] - 50 * 5)


def test_lora_has_every_row_and_computes_something_right() -> None:
    report = quick("lora", "--repeats", "1")
    assert len(rows_of(report.tables[0])) == len(report.figures) == 4
    work = lora.make_work(3, 4, 5, 64, torch.device("cpu"), torch.float32, 16)
    lora.paged(select("reference"), work)
    ours = work.out.clone()
    lora.paged(select("cpu"), work)
    assert ours.abs().max() > 0
    torch.testing.assert_close(work.out, 2 * ours, rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("small")
def test_the_file_says_where_it_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    main(["async", "--quick", "--seed", "3", "--out", str(path)])
    whole: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert whole["settings"]["seed"] == 3 and whole["environment"]["packages"]["numpy"]
    assert set(whole["figures"]) == set(async_calls.ARMS)
    assert "engine.run" in capsys.readouterr().out


@pytest.mark.parametrize("name", BENCHMARKS)
def test_help_shows_the_defaults(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    assert "default:" in capsys.readouterr().out


def test_sources_table_has_every_size_and_kind() -> None:
    report = quick("sources", "--ticks", "2")
    by_size, by_kind = report.tables
    assert rows_of(by_size) == ["1000", "10000"]
    assert set(rows_of(by_kind)) == {"proximity", "activation", "learned, a call"}
    assert all(float(row[3]) > 0 and float(row[7]) >= 0 for row in cells(by_size))


def test_the_guards_target_is_held_against_the_whole_interval() -> None:
    report = quick("guard")
    low, high = report.figures["interval"]
    assert report.figures["ratios"][0] <= low <= report.figures["ratio"] <= high
    ((*_, met),) = report.verdicts
    assert met == (high <= 1.01) and report.figures["events"] > 0


def test_the_interval_of_a_median_is_the_binomials() -> None:
    """As tables of the sign test have it: for 6, 20 and 100 values; 5 are too few."""
    ranks = {count: guard.median_interval(range(1, count + 1)) for count in (6, 20, 100)}
    assert ranks == {6: (1, 6), 20: (6, 15), 100: (40, 61)}
    assert guard.median_interval(range(5)) == (-math.inf, math.inf)


def test_structured_texts_are_valid() -> None:
    report = quick("structure")
    assert all(met for *_, met in report.verdicts), report.verdicts
    assert sum(report.figures["outcomes"].values()) == 30 and not report.figures["failures"]
