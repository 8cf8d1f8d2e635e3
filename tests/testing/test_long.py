"""The long tier's campaigns run, count and go on where they stopped; one seed of each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.long.__main__ import CAMPAIGNS
from tests.long.campaign import Campaign, load, pursue


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_one_seed_of_each(name: str) -> None:
    campaign = CAMPAIGNS[name]
    assert campaign.run(3 if name == "interleavings" else 1)[campaign.unit] > 0


def test_a_campaign_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:  # type: ignore[type-arg]
    seeds: list[int] = []

    def run(seed: int) -> Counter[str]:
        seeds.append(seed)
        assert seed != 7, "seven"
        return Counter(things=2)

    campaign, path = Campaign("count", "things", 100, "nothing", run), tmp_path / "state.json"
    for upto in (4, 4, 6):
        state = load(path, campaign, 3)
        assert pursue(campaign, state, count=upto, seconds=60.0, path=path)
    assert seeds == [3, 4, 5]
    assert not pursue(campaign, load(path, campaign, 3), count=99, seconds=60.0, path=path)
    out = capsys.readouterr().out
    assert "count: 6 things of 100; seeds 3 to 5" in out
    assert "replay: python -m tests.long count --seed 7 --count 1" in out


def test_a_call_does_the_least_whatever_its_seconds() -> None:
    campaign = Campaign("count", "things", 100, "nothing", lambda seed: Counter(things=2), least=5)
    state = load(None, campaign, 0)
    for done in (6, 12):
        assert pursue(campaign, state, count=100, seconds=0.0, path=None)
        assert state.counts == {"things": done}
    assert pursue(campaign, state, count=13, seconds=0.0, path=None)
    assert state.counts == {"things": 14}


@pytest.mark.parametrize(
    ("campaign", "seed"), [("operations", 449), ("operations", 1096), ("schedules", 888)]
)
def test_a_walk_that_once_was_judged_wrongly(campaign: str, seed: int) -> None:
    """A save of a page whose load had waited for the step that wrote it; a partial block that
    was taken over while the step that fills it was in flight; a request whose adapter could not be
    read nine times."""
    assert CAMPAIGNS[campaign].run(seed)[campaign] > 0


@pytest.mark.parametrize("seed", [129, 1295])
def test_a_schedule_that_once_failed(seed: int) -> None:
    """Two loads of one segment: what load-or-rebuild leaves out ahead, a call may ask for. And a
    segment in no order: what left with its child was merged before what is above it was told."""
    assert CAMPAIGNS["schedules"].run(seed)["schedules"] == 1
