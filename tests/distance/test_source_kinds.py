"""The sources by themselves, each against what its simulation really does."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.agent_cache import acts, belady, misses
from scalesim.distance import (
    Activation,
    Estimates,
    Graph,
    Learned,
    Plan,
    Predrawn,
    Source,
    Turns,
)
from scalesim.distance.clock import Clock
from scalesim.distance.distances import Distances
from scalesim.distance.learned.day import Day
from scalesim.distance.learned.survival import NUM_BINS, Survival, bin_of, bins_of
from scalesim.distance.learned.trial import NUM_SAMPLED, Trial
from scalesim.errors import ConfigError, RequestError
from tests.distance.cache import city, memoryless, recent, rounds, town


def said(source: Source, now: float = 0.0) -> dict[object, float]:
    estimates = source.changes(now)
    return dict(zip(estimates.agents, estimates.at, strict=True))


# -- plan --------------------------------------------------------------------------------------


def test_a_plan_goes_on_at_each_end_and_survives_an_interruption() -> None:
    plan = Plan()
    plan.follow("ada", 5.0, 3.0)
    assert said(plan, 10.0) == {"ada": 15.0}
    plan.called("ada", 12.0)  # interrupted
    assert said(plan, 12.0) == {}
    plan.called("ada", 16.0)  # its end, late
    assert said(plan, 16.0) == {"ada": 19.0}
    plan.called("ada", 19.0)
    (at,) = said(plan, 19.0).values()
    assert math.isnan(at)


def test_a_new_plan_replaces_the_old_one_and_none_takes_it_back() -> None:
    plan = Plan()
    plan.follow("ada", 5.0, 3.0)
    plan.follow("ada", 9.0)
    assert said(plan) == {"ada": 9.0}
    plan.follow("ada")
    assert math.isnan(said(plan)["ada"])
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(RequestError, match="'ada'"):
            plan.follow("ada", bad)


# -- graph and turns ---------------------------------------------------------------------------


def test_hops_multiply_and_end() -> None:
    graph = Graph({"a": ["b"], "b": {"c": 0.5, "d": 0.1}, "c": ["e"]}, delay=2.0, max_hops=2)
    graph.called("a", 10.0)
    estimates = graph.changes(10.0)
    told = dict(zip(estimates.agents, zip(estimates.at, estimates.confidence, strict=True),
                    strict=True))  # fmt: skip
    assert told == {"b": (12.0, 0.9), "c": (14.0, 0.45)}  # d is too unlikely, e too far
    graph.connect("a", ["e"])
    graph.changes(10.0)
    graph.called("a", 11.0)
    assert said(graph, 11.0) == {"e": 13.0}


def test_a_hub_does_not_cost_more_than_it_may() -> None:
    graph = Graph({"hub": list(range(100_000))}, max_reached=50)
    graph.called("hub", 0.0)
    assert len(said(graph)) == 50
    with pytest.raises(ConfigError, match=r"probability=1\.5"):
        Graph({"a": {"b": 1.5}})
    with pytest.raises(ConfigError, match="delay=0"):
        Graph({}, delay=0.0)


def test_turns_are_exact_within_the_tick_too() -> None:
    turns = Turns("abcd")
    assert said(turns) == {"a": 0.0, "b": 0.25, "c": 0.5, "d": 0.75}
    turns.called("b", 0.0)
    assert said(turns) == {"b": 1.25}
    turns.announce("dcba", 1.0)
    assert said(turns, 1.0) == {"d": 1.0, "c": 1.25, "b": 1.5, "a": 1.75}
    with pytest.raises(ConfigError, match="two places"):
        Turns("aba")
    with pytest.raises(ConfigError, match="period=0"):
        Turns("ab", period=0.0)
    with pytest.raises(RequestError, match="finite"):
        turns.announce("ab", math.nan)


# -- activation --------------------------------------------------------------------------------


def test_an_activation_is_expected_after_one_over_p_and_again_when_it_did_not_come() -> None:
    source = Activation("abc", [0.5, 0.1, 0.0])
    told = said(source)
    assert (told["a"], told["b"]) == (2.0, 10.0)
    assert math.isnan(told["c"])
    assert said(source, 2.5) == {"a": 4.5}
    source.called("b", 3.0)
    assert said(source, 3.0) == {"b": 13.0}
    source.set("c", 1.0)
    assert said(source, 4.0) == {"c": 5.0}
    with pytest.raises(ConfigError, match=r"probability=1\.2"):
        Activation("a", 1.2)
    with pytest.raises(RequestError, match="'z'"):
        source.set("z", 0.5)


def test_the_confidence_of_an_activation_is_how_often_it_comes_true() -> None:
    rng = np.random.default_rng(7)
    for rate in (0.05, 0.1, 0.3, 0.9):
        confidence = float(np.asarray(Activation("a", rate).changes(0.0).confidence)[0])
        wait = 1.0 / rate
        draws = rng.geometric(rate, 40_000)
        hits = np.abs(draws - wait) <= max(1.0, 0.25 * wait)
        assert confidence == pytest.approx(hits.mean(), abs=0.02)


def test_draws_made_ahead_are_the_same_draws_and_exact_distances() -> None:
    def drawing(seed: int) -> object:
        rng = np.random.default_rng(seed)
        return lambda tick: np.flatnonzero(rng.random(30) < 0.1).tolist()

    plain = drawing(8)
    truth = [plain(tick) for tick in range(120)]  # type: ignore[operator]
    source = Predrawn(drawing(8), horizon=40)  # type: ignore[arg-type]
    distances = Distances(Clock())
    distances.add(source)
    right = wrong = 0
    for tick in range(80):
        active = source.active(tick)
        assert list(active) == truth[tick]
        distances.tick(0.0, to=float(tick))
        for agent in active:
            distances.called(agent)
            distances.ended(agent)
            comes = next((s for s in range(tick + 1, tick + 41) if agent in truth[s]), None)
            if distances.next_use(agent) == comes:
                right += 1
            else:
                wrong += 1
    assert right > 150 and wrong == 0
    score = distances.scores()["predrawn"]
    assert score.on_time > 200 and score.early + score.late + score.never == 0
    with pytest.raises(RequestError, match=r"active\(3\)"):
        source.active(3)
    with pytest.raises(ConfigError, match="horizon=0"):
        Predrawn(lambda tick: (), horizon=0)


# -- learned -----------------------------------------------------------------------------------


def test_learned_says_nothing_before_it_knows_anything() -> None:
    source = Learned()
    for tick in range(2):
        for agent in range(50):
            source.called(agent, float(tick))
            assert source.changes(float(tick)) == Estimates((), ())


@pytest.mark.parametrize(
    ("ticks", "capacity", "share"),
    [
        (rounds(60, 60), 15, 0.9),
        (rounds(60, 60), 45, 0.9),
        (city(120, 250, 1), 24, 0.8),
        (city(120, 250, 2), 60, 0.8),
        (town(60, 500, 1), 12, 0.5),
        (town(60, 500, 2), 6, 0.5),
    ],
    ids=["rounds-25%", "rounds-75%", "city-20%", "city-50%", "town-20%", "town-10%"],
)
def test_learned_alone_is_better_than_lru(
    ticks: list[list[int]], capacity: int, share: float
) -> None:
    """``share``: of the misses that exact hints save over LRU."""
    lru, exact = misses(ticks, capacity), misses(ticks, capacity, hints=True)
    learned = misses(ticks, capacity, [Learned()])
    assert belady(ticks, capacity) <= exact < lru
    assert lru - learned >= share * (lru - exact)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("capacity", [10, 40])
def test_learned_is_not_worse_where_there_is_nothing_to_learn(seed: int, capacity: int) -> None:
    for ticks in (memoryless(100, 200, seed), recent(100, 600, seed)):
        lru = misses(ticks, capacity)
        assert misses(ticks, capacity, [Learned()]) <= 1.02 * lru + 6


def test_a_pause_is_measured_in_the_time_in_which_people_are_awake() -> None:
    day = Day(240.0)
    for tick in range(240 * 5):
        day.pass_to(float(tick))
        if 80 <= tick % 240 < 200:  # awake for half of the day
            day.observe(float(tick))
    assert day.busy(240.0) == 240.0
    evening, morning = day.busy(4 * 240 + 199.0), day.busy(5 * 240 + 81.0)
    assert morning - evening < 0.15 * (122.0)  # the night hardly counts
    for time in (0.0, 50.0, 100.0, 199.0, 1000.5):
        assert day.clock(day.busy(time)) == pytest.approx(time, abs=1e-6)
    with pytest.raises(ConfigError, match="day=0"):
        Learned(day=0.0)


@pytest.mark.parametrize(
    ("kind", "agents", "ticks", "share", "most"),
    [
        ("w1", 200, 400, 0.25, 1.02),  # nothing can be gained: see docs/distance.md
        ("w1", 200, 400, 0.75, 0.9),
        ("w2", 200, 200, 0.25, 0.95),
        ("w3", 150, 1500, 0.25, 0.92),
        ("w3", 150, 1500, 0.5, 0.97),
        ("w4", 60, 40, 0.25, 0.8),
    ],
)
def test_learned_misses_less_than_lru_on_the_workloads(
    kind: str, agents: int, ticks: int, share: float, most: float
) -> None:
    calls = acts(kind, agents, ticks, seed=0)
    capacity = int(share * agents)
    assert misses(calls, capacity, [Learned()]) <= most * misses(calls, capacity)


def test_a_curve_finds_the_law_of_the_pauses() -> None:
    """Half of the pauses last 2 ticks, half 20: at once, it is the short one that is worth waiting
    for; after it did not come, the long one is certain."""
    survival, rng = Survival(1), np.random.default_rng(3)
    for pause in rng.choice([2.0, 20.0], 2000):
        survival.observe(0, float(pause))
    survival.fit(np.zeros(0, np.int64), np.zeros(0))
    distance = survival.distance[0]
    assert distance[0] == pytest.approx(5.0, abs=0.3)  # two to three ticks for half a call
    assert distance[1] == pytest.approx(3.0, abs=0.3)
    assert distance[3] == pytest.approx(17.0, abs=2.0)  # what is beyond 16 is known by a quarter
    assert 2.0 <= survival.until[0, 0] <= 3.0  # from then on, another time is to be said
    assert survival.likely[0, 3] > 0.9


def test_pauses_that_are_not_over_count_as_well() -> None:
    seen, waits = Survival(1), Survival(1)
    for curve in (seen, waits):
        for _ in range(100):
            curve.observe(0, 3.0)
    none = np.zeros(0, np.int64)
    seen.fit(none, np.zeros(0))
    waits.fit(np.zeros(300, np.int64), np.full(300, 50.0))  # three in four have not come back
    assert waits.distance[0, 0] > 3.0 * seen.distance[0, 0]


def test_what_is_not_known_of_a_kind_is_what_is_known_of_all() -> None:
    survival = Survival(3)
    for _ in range(500):
        survival.observe(0, 4.0)
        survival.observe(1, 40.0)
    survival.fit(np.zeros(0, np.int64), np.zeros(0))
    assert survival.distance[0, 0] < survival.distance[2, 0] < survival.distance[1, 0]
    assert survival.distance[0, 0] == pytest.approx(4.0, abs=0.5)


@pytest.mark.parametrize("age", [0.0, 0.5, 1.0, 15.9, 16.0, 17.0, 19.0, 300.0, 1e6, 1e12])
def test_an_age_and_ages_lie_in_the_same_bins(age: float) -> None:
    assert bin_of(age) == bins_of(np.array([age]))[0] < NUM_BINS


def test_a_trial_is_won_by_what_misses_less_and_lost_again() -> None:
    def play(trial: Trial, rounds: int) -> None:
        """Everybody in turn, and predicted."""
        rows = 60
        for time in range(rounds):
            for row in range(rows):
                sampled = trial.sampled()
                passed = sampled < row
                last = np.where(passed, time, time - 1.0)
                right = np.where(passed, time + 1.0, time * 1.0)
                trial.called(row, right, last, float(time))

    trial = Trial(seed=0)
    for row in range(60):
        trial.enter(row)
    assert trial.kept == 1.0
    play(trial, 10)
    assert trial.is_won and trial.kept < 0.8
    for time in range(200):  # pairs that call twice: last use is right, and the opposite was said
        for first in range(0, 60, 2):
            for row in (first, first + 1, first, first + 1):
                passed = np.abs(trial.sampled() - row) <= 1
                trial.called(row, np.where(passed, 9e9, 0.0), np.zeros(60), float(time))
    assert not trial.is_won and trial.kept > 1.0


def test_each_agent_has_the_same_chance_to_be_in_the_sample() -> None:
    trials = [Trial(seed) for seed in range(30)]
    for trial in trials:
        for row in range(1000):
            trial.enter(row)
        rows = trial.sampled()
        assert len(rows) == len(set(rows.tolist())) == NUM_SAMPLED
        assert all(trial.samples(row) for row in rows.tolist())
    late = sum(float((trial.sampled() >= 500).mean()) for trial in trials) / len(trials)
    assert late == pytest.approx(0.5, abs=0.04)
