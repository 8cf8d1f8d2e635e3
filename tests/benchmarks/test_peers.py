"""Our engine beside a peer: arms in processes of their own, and what is made of their plays."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.__main__ import BENCHMARKS, parser
from benchmarks.peers import Play, Side, report_of


def test_both_engines_play_in_turn_and_say_the_same() -> None:
    options = ["engine", "--quick", "--peer", "transformers", "--pools", "1", "--threads", "1"]
    report = BENCHMARKS["engine"].run(parser().parse_args(options))
    assert set(report.figures) == {"ours, 100%", "transformers, 100%"}
    for arm in report.figures.values():
        assert arm["turns_differing"] == 0
        assert len(arm["turn_s"]) == 1 and len(arm["turn_s"][0]) == 3
        assert arm["warm_turns_per_s"] > 0.0 and arm["processor_s"][0] > 0.0


def play(first_s: float, later_s: float, text: int = 0) -> Play:
    return Play([first_s, later_s, later_s], 10.0, np.full((8, 3, 4), text, np.int32))


def test_a_comparison_counts_medians_texts_and_the_same_memory(tmp_path: Path) -> None:
    played = {
        Side("ours", 1.0): [play(2.0, 1.0), play(20.0, 9.0), play(2.0, 1.0)],  # one disturbed
        Side("vllm", 1.0): [play(4.0, 1.0), play(4.0, 1.0), play(4.0, 1.0)],
        Side("ours", 0.25): [play(2.0, 2.0), play(2.0, 2.0), play(2.0, 2.0)],
        Side("vllm", 0.25): [play(4.0, 6.0), play(4.0, 6.0), play(4.0, 6.0, text=1)],
    }
    picture = tmp_path / "plots" / "memory.svg"
    options = argparse.Namespace(peer="vllm", agents=8, turns=3, plot=picture)
    report = report_of(options, played)
    assert report.figures["ours, 100%"]["turns_per_s"] == 24 / 4.0
    assert report.figures["ours, 100%"]["warm_turns_per_s"] == 16 / 2.0
    assert [report.figures[str(side)]["turns_differing"] for side in played] == [0, 0, 0, 24]
    found = {what: (measured, met) for what, _, measured, met in report.verdicts}
    assert found == {
        "all memory: ours over vllm": ("1.5", True),
        "25% on both sides, warm: ours over vllm": ("3", True),
        "ours with 25% over vllm, 100%": ("1", True),
    }
    once = picture.read_bytes()
    report_of(options, played)
    assert picture.read_bytes() == once
