"""The benchmarks of the disk run at tiny sizes, and their tables are complete. Nothing is timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS, parser


@pytest.mark.parametrize(("name", "num_tables"), [("tiers", 2), ("replay-tiers", 2)])
def test_tables_of_the_disk(name: str, num_tables: int) -> None:
    report = BENCHMARKS[name].run(parser().parse_args([name, "--quick"]))
    assert len(report.tables) == num_tables and report.figures
    for table in report.tables:
        assert {str(cell) for cell in table.columns[0].cells} >= {"deadline", "lru-swap"}
    equal = [met for what, _, _, met in report.verdicts if "texts of all-resident" in what]
    assert all(equal) and len(equal) == (2 if name == "tiers" else 0)
    by_bytes = [what for what, *_ in report.verdicts if "what its bytes allow" in what]
    assert len(by_bytes) == (0 if name == "tiers" else 1)


def test_a_curve_of_the_disk_has_the_roof_above_every_policy(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="only plots need it: dependency group plots")
    asked = ["replay-tiers", "--quick", "--only", "host share", "--plots", str(tmp_path)]
    report = BENCHMARKS["replay-tiers"].run(parser().parse_args(asked))
    points = report.figures["host share"]
    assert len(points) == 2 and all(len(arms) == 3 for arms in points.values())
    assert all(0 < arm["of_roof"] <= 1 + 1e-9 for arms in points.values() for arm in arms.values())
    assert [path.name for path in tmp_path.iterdir()] == ["replay-tiers-host-share.svg"]
