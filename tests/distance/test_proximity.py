"""Who can meet whom, against all pairs computed one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scalesim.distance.sources.grid import Grid
from scalesim.distance.sources.proximity import Proximity
from scalesim.errors import ConfigError, RequestError

HORIZON, RADIUS, MAX_SPEED = 6.0, 1.5, 1.0


def said(source: Proximity, now: float, held: dict[object, float]) -> dict[object, float]:
    estimates = source.changes(now)
    held.update(zip(estimates.agents, estimates.at, strict=True))
    return {agent: at for agent, at in held.items() if at == at}


def brute(points: np.ndarray, speeds: np.ndarray, now: float) -> dict[object, float]:
    found: dict[object, float] = {}
    for i in range(len(points)):
        best = math.inf
        for j in range(len(points)):
            gap = float(np.hypot(*(points[i] - points[j]))) - RADIUS
            speed = speeds[i] + speeds[j]
            if i != j and (gap <= 0 or speed > 0):
                best = min(best, now + max(0.0, gap) / speed if gap > 0 else now)
        if best <= now + HORIZON:
            found[i] = best
    return found


def test_everybody_is_told_when_they_can_first_meet_at_their_own_speeds() -> None:
    rng = np.random.default_rng(1)
    points = rng.random((60, 2)) * 60
    speeds = rng.choice([0.0, 0.3, 1.0], 60)
    source = Proximity(
        range(60), points, radius=RADIUS, max_speed=MAX_SPEED, speeds=speeds, horizon=HORIZON
    )
    assert said(source, 3.0, {}) == pytest.approx(brute(points, speeds, 3.0))


def test_moving_a_few_gives_what_moving_all_anew_gives() -> None:
    rng = np.random.default_rng(2)
    points = rng.random((80, 2)) * 50
    speeds = rng.random(80)
    source = Proximity(
        range(80), points, radius=RADIUS, max_speed=MAX_SPEED, speeds=speeds, horizon=HORIZON
    )
    held: dict[object, float] = {}
    said(source, 0.0, held)
    for _ in range(20):
        rows = rng.choice(80, 5, replace=False)
        points[rows] += rng.normal(size=(5, 2)) * 4
        source.move(rows.tolist(), points[rows])
        told, truth = said(source, 0.0, held), brute(points, speeds, 0.0)
        for agent in told.keys() | truth.keys():  # what changed by little is not told again
            distance = truth.get(agent, HORIZON)
            assert told.get(agent, HORIZON) == pytest.approx(distance, abs=0.5 + 0.1 * distance)


def test_only_what_changed_is_told() -> None:
    points = np.array([[0.0, 0.0], [5.0, 0.0], [90.0, 0.0], [95.0, 0.0]])
    source = Proximity("abcd", points, radius=1.0, max_speed=1.0, horizon=5.0)
    assert set(source.changes(0.0).agents) == set("abcd")
    assert len(source.changes(0.0).agents) == 0
    source.move("b", [[2.0, 0.0]])
    assert set(source.changes(0.0).agents) == {"a", "b"}
    source.move("a", [[-90.0, 0.0]])
    estimates = source.changes(0.0)
    assert set(estimates.agents) == {"a", "b"}
    assert np.isnan(estimates.at).all()  # nobody is near them any more


def test_a_cooldown_holds_for_both_and_does_not_hide_a_nearer_third() -> None:
    points = np.array([[0.0, 0.0], [0.5, 0.0], [0.0, 5.0]])
    source = Proximity("abc", points, radius=1.0, max_speed=1.0, horizon=20.0, cooldown=10.0)
    assert said(source, 0.0, {})["a"] == 0.0
    source.called("b", 0.0)
    held = said(source, 0.0, {})
    assert held["b"] == 10.0
    source.called("a", 0.0)
    source.changes(0.0)
    source = Proximity("abc", points, radius=1.0, max_speed=1.0, horizon=20.0, cooldown=10.0)
    source.called("b", 0.0)
    assert said(source, 0.0, {})["a"] == pytest.approx(2.0)  # c can be there before b is ready


def test_standing_together_in_silence_is_said_once() -> None:
    source = Proximity("ab", [[0.0, 0.0], [0.5, 0.0]], radius=1.0, max_speed=1.0)
    assert list(source.changes(0.0).at) == [0.0, 0.0]
    told = [source.changes(now) for now in (1.0, 2.0, 3.0)]
    assert np.isnan(told[0].at).all()
    assert [len(each.agents) for each in told[1:]] == [0, 0]
    source.move("b", [[6.0, 0.0]])
    source.changes(4.0)
    source.move("b", [[0.5, 0.0]])
    assert list(source.changes(5.0).at) == [5.0, 5.0]  # they met again


def test_the_grid_finds_all_that_is_near_after_many_moves() -> None:
    rng = np.random.default_rng(3)
    grid = Grid(rng.random((200, 2)) * 30, cell=4.0)
    for _ in range(30):
        rows = rng.choice(200, 7, replace=False)
        grid.move(rows, rng.random((7, 2)) * 30)
        pairs = {(int(a), int(b)) for mine, other in grid.pairs(rows)
                 for a, b in zip(mine, other, strict=True)}  # fmt: skip
        gaps = np.hypot(*(grid.points[rows][:, None] - grid.points[None]).transpose(2, 0, 1))
        near = {(int(rows[i]), int(j)) for i, j in zip(*np.nonzero(gaps < 4.0), strict=True)}
        assert {(i, j) for i, j in near if i != j} <= pairs


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"radius": 0.0}, "radius=0.0"),
        ({"max_speed": math.nan}, "max_speed=nan"),
        ({"horizon": math.inf}, "horizon=inf"),
        ({"positions": [[0.0, 0.0]]}, r"\[2, 2\]"),
        ({"positions": [[0.0, math.nan], [0.0, 0.0]]}, "finite"),
        ({"speeds": [0.5, 2.0]}, "max_speed=1.0"),
        ({"agents": "aa"}, "named twice"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], words: str) -> None:
    settings = {
        "agents": "ab", "positions": [[0.0, 0.0], [1.0, 1.0]], "radius": 1.0, "max_speed": 1.0,
    }  # fmt: skip
    with pytest.raises((ConfigError, RequestError), match=words):
        Proximity(**{**settings, **change})  # type: ignore[arg-type]
    source = Proximity("ab", [[0.0, 0.0], [1.0, 1.0]], radius=1.0, max_speed=1.0)
    with pytest.raises(RequestError, match="'z'"):
        source.move("z", [[0.0, 0.0]])
