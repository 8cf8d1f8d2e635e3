"""Every interleaving of the small cases that are quick; and a missing wait cannot hide in them."""

from __future__ import annotations

import pytest

from scalesim.memory.eviction.ranking import EvictionRanking
from scalesim.memory.pools.page_pool import PagePool
from scalesim.memory.tree.segment import Segment
from tests.machines.explore import explore
from tests.machines.small_cases import small_cases

CASES = {case.name: case for case in small_cases()}
QUICK = ("two loads that fill the pool", "evictions and a host that is short of pages")
FENCED = "a load into pages that a step in flight still uses"


@pytest.mark.parametrize("name", QUICK)
def test_every_interleaving(name: str) -> None:
    explored = explore(CASES[name])
    assert explored.complete and explored.states > 20 and explored.left > 0


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 5


def test_a_missing_wait_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PagePool, "fence", lambda self, pages: -1)
    with pytest.raises(AssertionError, match="choices") as caught:
        explore(CASES[FENCED])
    assert type(caught.value.__cause__).__name__ in ("RaceError", "TagError")


def test_a_pin_that_is_forgotten_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    unpin = EvictionRanking.unpin

    def twice_at_last(self: EvictionRanking, segment: Segment) -> None:
        unpin(self, segment)
        if segment.pins == 1:
            unpin(self, segment)

    monkeypatch.setattr(EvictionRanking, "unpin", twice_at_last)
    with pytest.raises(AssertionError, match="choices"):
        explore(CASES["a fork takes the tail of one that goes on"])
