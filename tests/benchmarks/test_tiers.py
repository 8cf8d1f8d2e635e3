"""The benchmarks of the disk run at tiny sizes, and their tables are complete. Nothing is timed."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import BENCHMARKS, parser


@pytest.mark.parametrize(("name", "num_tables"), [("tiers", 2), ("replay-tiers", 1)])
def test_tables_of_the_disk(name: str, num_tables: int) -> None:
    report = BENCHMARKS[name].run(parser().parse_args([name, "--quick"]))
    assert len(report.tables) == num_tables and report.figures
    for table in report.tables:
        assert {str(cell) for cell in table.columns[0].cells} >= {"deadline", "lru-swap"}
    equal = [met for what, _, _, met in report.verdicts if "texts of all-resident" in what]
    assert all(equal) and len(equal) == (2 if name == "tiers" else 0)
