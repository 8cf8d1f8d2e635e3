"""Damaged snapshots: a bad page is a miss, a bad manifest falls back; ``python -m tests.long
damage`` has 10 000."""

from __future__ import annotations

from collections import Counter

from tests.snapshot.damage import run


def test_damage_is_seen_and_changes_no_text() -> None:
    found: Counter[str] = Counter()
    for seed in range(96):
        found += run(seed)
    assert found["damages"] == 96 and found["texts"] >= 4
    assert 0 < found["refused"] < found["warned"] < 96
