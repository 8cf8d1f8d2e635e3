"""The replay benchmarks run at tiny sizes, and the same seed gives the same figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import replay_curves
from benchmarks.__main__ import BENCHMARKS, parser
from benchmarks.link_schedule import Turn, scheduled_s
from benchmarks.report import Report


def quick(name: str, *more: str) -> Report:
    return BENCHMARKS[name].run(parser().parse_args([name, "--quick", *more]))


def test_the_bound_is_there_for_every_policy_and_repeats() -> None:
    first, second = quick("replay-bound"), quick("replay-bound")
    assert first.figures == second.figures
    assert {"deadline", "lru-swap", "levels", "lru-recompute"} <= set(first.figures["W1 city, 0.5"])
    assert first.verdicts[0][0].startswith("W1 city, 50%")


def test_no_policy_exceeds_the_roof_on_traces_and_workloads(tmp_path: Path) -> None:
    rows = [{"timestamp": 9000 * at, "session_id": f"s{at % 3}", "input_length": 600,
             "output_length": 4, "hash_ids": [at % 3, 10 + at]} for at in range(12)]  # fmt: skip
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    figures = quick("replay-hints", str(path), "--workloads", "w1").figures
    assert {name: len(arms) for name, arms in figures.items()} == {"mine, 1": 10, "w1, 1": 12}
    for arms in figures.values():
        for arm in arms.values():
            assert 0 < arm["turns_per_s"] <= arm["roof"] * (1 + 1e-9)
            assert arm["over_belady"] is None or arm["over_belady"] >= 1


def test_a_town_is_replayed_in_three_forms(tmp_path: Path) -> None:
    rows = [{"kind": "action", "step": step, "agent": agent}
            for step in range(8) for agent in range(2)]  # fmt: skip
    path = tmp_path / "town.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ask = (str(path), "--workloads", "--ticks", "2", "--policies", "lru-swap")
    first, second = quick("replay-hints", *ask), quick("replay-hints", *ask)
    assert list(first.figures) == ["town, alone, 1", "town, crowded, 1", "town, eight, 1"]
    assert first.figures == second.figures


def test_curves_have_a_point_for_each_value(tmp_path: Path) -> None:
    report = quick("replay-curves", "--only", "hint mode")
    assert list(report.figures["hint mode"]) == list(replay_curves.CURVES["hint mode"][1])
    assert len(report.verdicts) == 2


def test_a_curve_is_drawn_the_same_twice(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="only plots need it: dependency group plots")
    report = quick("replay-curves", "--only", "link rate", "--plots", str(tmp_path / "a"))
    quick("replay-curves", "--only", "link rate", "--plots", str(tmp_path / "b"))
    (drawn,) = (tmp_path / "a").iterdir()
    assert drawn.read_bytes() == (tmp_path / "b" / drawn.name).read_bytes()
    assert len(report.figures["link rate"]) == 5


def test_policies_on_several_models_are_held_against_the_roof() -> None:
    figures = quick("replay-models").figures
    assert list(figures) == ["h100, cyclic, answers of 8", "h100, skewed, answers of 8"]
    for arms in figures.values():
        assert all(0 < arm["of_roof"] <= 1 + 1e-9 for arm in arms.values())
        assert arms["deadline"]["turns_per_s"] <= arms["deadline"]["schedule"]


def test_the_links_schedule_keeps_what_there_is_room_for() -> None:
    """Three models of 10 pages in turn; a page takes 1 s."""

    def took(capacity: int, seconds: float) -> float:
        return scheduled_s([Turn(at % 3, 10, seconds) for at in range(9)], capacity, 1.0)

    assert took(30, 5.0) == 9 * 5.0
    assert took(10, 5.0) == 9 * 5.0 + 8 * 10.0  # the first is there; the others wait for each page
    assert took(20, 10.0) == 9 * 10.0  # each comes while the one before computes
    # half of each comes while the one before computes, and part of the other half has stayed
    assert 9 * 5.0 < took(20, 5.0) < 9 * 5.0 + 8 * 5.0
    times = [took(capacity, 5.0) for capacity in range(10, 31)]
    assert times == sorted(times, reverse=True)


def test_the_generators_are_held_against_their_sources() -> None:
    figures = quick("replay-figures").figures
    assert figures["w4 active"] == 1.0 and 0.05 < figures["w1 active"] < 0.08
    assert 3200 < figures["w2 first in"] < 3500 and 160 < figures["w2 out"] < 176


def test_ticks_and_the_replay_are_measured() -> None:
    report = quick("replay-scale")
    assert report.figures["replay"]["turns"] > 0
    assert report.figures["500 agents"]["update + plan ms"] > 0


def test_learned_is_held_against_last_use_the_law_and_belady() -> None:
    report = quick("learned")
    for last_use, learned, _, exact, best in report.figures.values():
        assert best <= exact <= last_use
        assert best <= learned <= 1.02 * last_use
    assert len(report.tables) == 2
