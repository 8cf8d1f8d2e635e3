"""Every interleaving of the small cases that are quick; and a missing wait cannot hide in them."""

from __future__ import annotations

from typing import Any

import pytest

from scalesim.testing.bed import Factories
from tests.machines.explore import explore
from tests.machines.small_cases import small_cases
from tests.trust.broken import ForgetsThePin, KnowsNoFence

CASES = {case.name: case for case in small_cases()}
QUICK = ("two loads that fill the pool", "evictions and a host that is short of pages")


@pytest.mark.parametrize("name", QUICK)
def test_every_interleaving(name: str) -> None:
    explored = explore(CASES[name])
    assert explored.complete and explored.states > 20 and explored.left > 0


def broken_case(name: str, **parts: Any) -> pytest.ExceptionInfo[AssertionError]:
    """What the case ``name`` ends with where ``parts`` are broken."""
    cases = {case.name: case for case in small_cases(Factories(**parts))}
    with pytest.raises(AssertionError, match="choices") as caught:
        explore(cases[name])
    return caught


def test_a_missing_wait_is_found() -> None:
    caught = broken_case("a load into pages that a step in flight still uses", pool=KnowsNoFence)
    assert type(caught.value.__cause__).__name__ in ("RaceError", "TagError")


def test_a_pin_that_is_forgotten_is_found() -> None:
    broken_case("a fork takes the partial block of an agent that goes on", memory=ForgetsThePin)
