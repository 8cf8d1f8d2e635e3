"""How predictions are combined, scored and forgotten; and that hostile sources end nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scalesim.distance.calendar import Calendar
from scalesim.distance.clock import Clock
from scalesim.distance.distances import Distances
from scalesim.distance.estimates import Estimates, Source
from scalesim.errors import ConfigError
from tests.inside import part


class Says(Source):
    """Says what it is given, one batch for each time that it is asked."""

    def __init__(self, *batches: Estimates, name: str = "says") -> None:
        super().__init__()
        self.name = name
        self.batches = list(batches)

    def changes(self, now: float) -> Estimates:
        return self.batches.pop(0) if self.batches else Estimates((), ())


def listening(*sources: Source) -> Distances:
    distances = Distances(Clock())
    for source in sources:
        distances.add(source)
    return distances


def test_the_earliest_credible_one_counts() -> None:
    one = Says(Estimates("abc", (9.0, 9.0, 9.0), 0.9), name="one")
    two = Says(Estimates("abc", (4.0, 4.0, 4.0), (0.8, 0.3, 0.01)), name="two")
    distances = listening(one, two)
    assert [distances.next_use(agent) for agent in "abc"] == [4.0, 9.0, 9.0]


def test_the_likeliest_counts_where_none_is_credible() -> None:
    one = Says(Estimates("a", (9.0,), 0.2), name="one")
    two = Says(Estimates("a", (4.0,), 0.3), name="two")
    assert listening(one, two).next_use("a") == 4.0


@pytest.mark.parametrize("many", [False, True])
def test_a_batch_and_single_estimates_say_the_same(many: bool) -> None:
    rng = np.random.default_rng(4)
    agents = list(range(40))
    words = np.array([-3.0, 0.0, 2.5, 7.0, 1e300, math.nan, math.inf])
    at = rng.choice(words, 40)
    sure = rng.choice([0.0, 0.2, 0.9, 7.0, math.nan], 40)
    batches = [Estimates(agents, at, sure)]
    if not many:
        batches = [Estimates(agents[i : i + 1], at[i : i + 1], sure[i : i + 1]) for i in range(40)]
    source = Says(*batches)
    distances = listening(source)
    told = dict(change for _ in batches for change in distances.poll())
    expected = Distances(Clock())
    for agent, time, confidence in zip(agents, at, sure, strict=True):
        if math.isfinite(time) and confidence >= 0.05:
            expected.expect(agent, time, confidence)
    for agent in agents:
        assert distances.next_use(agent) == expected.next_use(agent)
        assert told.get(agent, distances.next_use(agent)) == distances.next_use(agent)
    unsure = np.isfinite(at) & np.isnan(sure)
    assert distances.scores()["says"].ignored == {
        "no time": np.isinf(at).sum(),
        "no confidence": unsure.sum(),
    }


def test_user_functions_combine_and_a_failing_one_is_replaced() -> None:
    def latest(at: np.ndarray, confidence: np.ndarray) -> np.ndarray:
        return np.nanmax(at, axis=0)

    def broken(at: np.ndarray, confidence: np.ndarray) -> np.ndarray:
        raise RuntimeError("no")

    for combine, expected in ((latest, 9.0), (broken, 4.0), (lambda at, _: at.T, 4.0)):
        distances = Distances(Clock(), combine)
        distances.add(Says(Estimates("a", (9.0,)), name="one"))
        distances.add(Says(Estimates("a", (4.0,)), name="two"))
        assert distances.next_use("a") == expected


def test_names_are_unique() -> None:
    with pytest.raises(ConfigError, match="'says'"):
        listening(Says(), Says())
    with pytest.raises(ConfigError, match="'declared'"):
        listening(Says(name="declared"))


# -- feedback ----------------------------------------------------------------------------------


def call(distances: Distances, agent: str) -> None:
    distances.called(agent)
    distances.ended(agent)


def test_calls_are_scored_early_on_time_late_and_never() -> None:
    distances = listening(Says(Estimates("eolnx", (20.0, 10.0, 2.0, 3.0, 30.0))))
    score = distances.scores()["says"]
    distances.tick(0.0, to=5.0)
    call(distances, "e")
    call(distances, "e")  # the burst goes on: scored once
    distances.called("l")  # said 2, came at 5: past the tolerance of one tick
    assert (score.early, score.on_time, score.late, score.never) == (1, 0, 0, 1)
    distances.tick(0.0, to=8.0)
    call(distances, "o")
    assert (score.early, score.on_time, score.never) == (1, 1, 2)


def test_a_late_call_within_patience_is_late() -> None:
    distances = listening(Says(Estimates("a", (8.0,))))
    distances.tick(0.0, to=12.0)
    distances.called("a")
    assert distances.scores()["says"].late == 1


def wrong_for(rounds: int, confidence: float, right: float) -> Distances:
    """A source that is right with probability ``right`` and claims ``confidence``."""
    rng = np.random.default_rng(5)
    source = Says()
    distances = listening(source)
    for tick in range(rounds):
        comes = 1.0 if rng.random() < right else 40.0
        source.batches.append(Estimates("a", (tick + comes,), confidence))
        distances.poll()
        distances.tick(0.0, to=tick + 1.0)
        distances.called("a")
        distances.ended("a")
    return distances


def test_a_source_that_does_not_deserve_its_confidence_is_muted_and_can_come_back() -> None:
    distances = wrong_for(300, confidence=1.0, right=0.1)
    assert distances.scores()["says"].muted
    source = part(distances, Says)
    assert isinstance(source, Says)
    source.batches.append(Estimates("b", (distances.clock.now + 3.0,)))
    distances.poll()
    assert distances.next_use("b") is None
    for _ in range(200):
        now = distances.clock.now
        source.batches.append(Estimates("a", (now + 1.0,)))
        distances.poll()
        distances.tick(0.0)
        distances.called("a")
        distances.ended("a")
    assert not distances.scores()["says"].muted


def test_modest_claims_that_come_true_as_often_are_trusted() -> None:
    assert wrong_for(400, confidence=0.3, right=0.3).scores()["says"].trust > 0.6
    assert wrong_for(400, confidence=1.0, right=0.3).scores()["says"].trust < 0.6


def test_crying_now_at_each_tick_does_not_escape_scoring() -> None:
    source = Says()
    distances = listening(source)
    for tick in range(600):
        source.batches.append(Estimates("a", (float(tick),)))
        distances.poll()
        distances.tick(0.0)
    assert distances.scores()["says"].muted
    assert distances.next_use("a") is None


# -- hostile -----------------------------------------------------------------------------------


class Raises(Source):
    name = "raises"

    def changes(self, now: float) -> Estimates:
        if now > 0:
            raise RuntimeError("no idea")
        return Estimates("ab", (5.0, 6.0))


@pytest.mark.parametrize(
    "nonsense",
    [
        Estimates("ab", (1.0,)),
        Estimates("ab", ("soon", "later")),  # type: ignore[arg-type]
        Estimates(([],), (1.0,)),  # type: ignore[list-item]
        None,
        Estimates(range(20), np.zeros(3)),
        Estimates(range(20), np.zeros((20, 2))),
    ],
)
def test_nonsense_ends_the_source_and_nothing_else(nonsense: Estimates) -> None:
    distances = listening(Says(Estimates((), ()), nonsense))
    distances.expect("a", 3.0)
    distances.tick(0.0)
    distances.tick(0.0)
    assert distances.next_use("a") == 3.0
    assert distances.poll() == []


def test_a_source_that_raises_is_not_asked_again() -> None:
    distances = listening(Raises())
    assert distances.next_use("a") == 5.0
    for _ in range(3):
        distances.tick(0.0)
    assert distances.next_use("a") == 5.0  # what it said before stands until it expires
    distances.tick(0.0, to=30.0)
    assert distances.next_use("a") is None


# -- the calendar ------------------------------------------------------------------------------


def test_the_calendar_gives_everything_once_and_on_time() -> None:
    rng = np.random.default_rng(6)
    calendar, waiting, now = Calendar(), {}, 0.0
    for row in range(400):
        time = now + float(rng.exponential(50.0))
        if row % 2:
            calendar.put_one(row, time, now)
        else:
            calendar.put(np.array([row]), np.array([time]), now)
        waiting[row] = time
        now += float(rng.random()) * 0.5
        rows, times = calendar.take(now)
        due = {each for each, time in waiting.items() if time < now}
        assert set(rows.tolist()) == due
        assert len(rows) == len(due)
        assert [waiting.pop(each) for each in rows.tolist()] == times.tolist()
    assert calendar.num_entries == len(waiting)


def test_the_calendar_gives_up_outdated_entries_when_they_would_move() -> None:
    calendar, given = Calendar(lambda row, time: row % 2 == 0), list[int]()
    for row in range(4):
        calendar.put_one(row, 100.0, 0.0)
    for now in range(100):
        given += calendar.take(float(now))[0].tolist()
        assert calendar.num_entries == (4 if now <= 96 else 2)
    assert given == []
    assert sorted(calendar.take(101.0)[0].tolist()) == [0, 2]
