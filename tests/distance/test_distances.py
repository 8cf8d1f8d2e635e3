"""The clock and the one number per agent: declared, calling, in a burst, expired."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalesim.distance.clock import Clock
from scalesim.distance.distances import Change, Distances


def make() -> tuple[Clock, Distances]:
    clock = Clock()
    return clock, Distances(clock)


def num_ignored(distances: Distances) -> int:
    return sum(sum(score.ignored.values()) for score in distances.scores().values())


def test_the_clock_goes_forward_only_and_learns_the_length_of_a_tick() -> None:
    clock = Clock()
    clock.tick(10.0)
    assert clock.seconds_per_tick is None
    clock.tick(12.0)
    assert (clock.now, clock.seconds_per_tick) == (2.0, 2.0)
    clock.tick(13.0, to=2.5)
    assert clock.seconds_per_tick == pytest.approx(2.0)
    clock.tick(14.0, to=2.5)  # no virtual time went by
    assert clock.seconds_per_tick == pytest.approx(2.0)
    for bad in (1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="forward"):
            clock.tick(15.0, to=bad)
    clock.tick(3.0)  # wall time that jumps back says nothing
    assert clock.seconds_per_tick == pytest.approx(2.0)


def test_a_declared_use_is_absolute_and_a_tick_changes_nothing() -> None:
    _, distances = make()
    assert distances.expect("ada", 5.0) == [("ada", 5.0)]
    assert distances.expect("ada", 5.0) == []
    for tick in range(4):
        assert distances.tick(float(tick)) == []
    assert distances.next_use("ada") == 5.0


def test_calling_is_now_and_consumes_the_hint() -> None:
    clock, distances = make()
    distances.expect("ada", 3.0)
    distances.tick(0.0, to=3.0)
    assert distances.called("ada") == [("ada", 3.0)]
    assert distances.next_use("ada") == clock.now
    assert distances.ended("ada") == [("ada", None)]


def test_an_early_call_keeps_a_later_hint() -> None:
    _, distances = make()
    distances.expect("ada", 9.0)
    assert distances.called("ada") == [("ada", 0.0)]
    assert distances.ended("ada") == [("ada", 9.0)]


def test_a_hint_expires_after_its_own_distance_or_two_ticks() -> None:
    _, distances = make()
    distances.expect("near", 1.0)
    distances.expect("far", 10.0)
    assert distances.tick(0.0, to=3.0) == []
    assert distances.tick(0.0, to=3.5) == [("near", None)]
    assert distances.tick(0.0, to=20.0) == []
    assert distances.tick(0.0, to=20.5) == [("far", None)]


def test_a_renewed_hint_does_not_expire_with_the_old_one() -> None:
    _, distances = make()
    distances.expect("ada", 1.0)
    distances.expect("ada", 30.0)
    assert distances.tick(0.0, to=5.0) == []
    assert distances.next_use("ada") == 30.0


def test_wake_overrides() -> None:
    _, distances = make()
    distances.expect("ada", 50.0)
    distances.tick(0.0, to=4.0)
    assert distances.wake("ada") == [("ada", 4.0)]


def test_a_burst_stays_now_until_its_usual_number_of_calls() -> None:
    clock, distances = make()
    for _ in range(3):  # learns: three calls a tick
        distances.called("ada")
        distances.ended("ada")
    distances.tick(0.0)
    distances.expect("ada", 8.0)
    distances.called("ada")
    assert distances.ended("ada") == []
    assert distances.next_use("ada") == clock.now  # two more are likely
    for _ in range(2):
        distances.called("ada")
        distances.ended("ada")
    assert distances.next_use("ada") == 8.0


def test_a_burst_is_as_long_as_its_calls_say() -> None:
    clock, distances = make()
    distances.expect("ada", 8.0)
    for more_calls in (2, 1, 0):
        distances.called("ada", more_calls)
        distances.ended("ada")
        assert distances.next_use("ada") == (clock.now if more_calls else 8.0)


def test_a_next_call_told_with_a_call_is_a_hint_behind_it() -> None:
    (clock, one), (_, two) = make(), make()
    for next_call in (3.0, 9.0, 9.0, 1.0, 30.0, 4.0):
        told = [one.called("ada", next_call=next_call), one.ended("ada"), one.tick(0.0, 2.0)]
        called = two.called("ada")
        assert two.expect("ada", next_call) == []  # a call is open
        assert told == [called, two.ended("ada"), two.tick(0.0, 2.0)]
        assert called == [("ada", clock.now - 2.0)] and one.scores() == two.scores()


def test_what_is_said_within_a_burst_is_told_though_the_next_use_is_now() -> None:
    """Memory takes what follows from calls for a guess, and loads nothing by it."""
    clock, distances = make()
    distances.called("ada", 2)
    assert distances.ended("ada") == [] and distances.next_use("ada") == clock.now
    assert distances.pin(["ada"]) == [("ada", clock.now)]
    assert distances.let_go(["ada"]) == []
    assert distances.wake("ada") == [("ada", clock.now)]


def test_a_burst_ends_where_its_agent_says_so() -> None:
    clock, distances = make()
    for _ in range(3):
        distances.called("ada")
        distances.ended("ada")
    distances.tick(0.0)
    distances.called("ada")
    distances.ended("ada")
    assert distances.next_use("ada") == clock.now
    assert distances.expect("ada", 8.0) == [("ada", 8.0)]


def test_a_burst_ends_with_the_tick() -> None:
    _, distances = make()
    for _ in range(2):
        distances.called("ada")
        distances.ended("ada")
    distances.tick(0.0)
    distances.called("ada")
    distances.ended("ada")
    assert distances.next_use("ada") == 1.0
    assert distances.tick(0.0) == [("ada", None)]


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -math.inf, "soon", None, 10**400])
def test_what_is_no_time_is_ignored_and_counted(nonsense: object) -> None:
    _, distances = make()
    distances.expect("ada", 7.0)
    assert distances.expect("ada", nonsense) == []  # type: ignore[arg-type]
    assert distances.next_use("ada") == 7.0
    assert num_ignored(distances) == 1


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("expect"), st.sampled_from("ab"), st.floats(-5, 30)),
        st.tuples(st.just("called"), st.sampled_from("ab"), st.just(0.0)),
        st.tuples(st.just("ended"), st.sampled_from("ab"), st.just(0.0)),
        st.tuples(st.just("advance"), st.just(""), st.floats(0, 5)),
    ),
    max_size=60,
)


@given(ACTS)
def test_what_was_told_is_always_what_is(acts: list[tuple[str, str, float]]) -> None:
    """Following the returned changes gives the same picture as asking."""
    clock, distances = make()
    told: dict[object, float | None] = {}
    open_calls = {"a": 0, "b": 0}
    for name, agent, number in acts:
        if name == "expect":
            changes = distances.expect(agent, number)
        elif name == "called":
            open_calls[agent] += 1
            changes = distances.called(agent)
        elif name == "ended" and open_calls[agent]:
            open_calls[agent] -= 1
            changes = distances.ended(agent)
        elif name == "advance":
            changes = distances.tick(0.0, to=clock.now + number)
        else:
            continue
        told.update(changes)
        for each, count in open_calls.items():
            if not count:
                assert told.get(each) == distances.next_use(each)
            else:  # told at the call; the clock may have gone on since
                assert told[each] is not None


NONSENSE = st.sampled_from([math.nan, math.inf, -math.inf, None, "soon", 10**400])


@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("expect"),
                st.dictionaries(st.integers(0, 11), st.floats(-5, 30) | NONSENSE, min_size=9),
            ),
            st.tuples(st.sampled_from(["called", "ended"]), st.integers(0, 11)),
            st.tuples(st.just("advance"), st.floats(0, 5)),
        ),
        max_size=25,
    )
)
def test_hints_for_many_and_one_by_one_say_the_same(acts: list[tuple[str, object]]) -> None:
    """Beside one that is given every hint singly: changes, bursts and counts."""
    (clock, many), (_, singly) = make(), make()
    open_calls = dict.fromkeys(range(12), 0)
    for name, given_ in acts:
        if name == "expect":
            hints: dict[object, float] = given_  # type: ignore[assignment]
            changes = many.expect_all(hints, 0.8, offset=clock.now)
            expected: list[Change] = []
            for agent, ticks in hints.items():
                expected += singly.expect_all({agent: ticks}, 0.8, offset=clock.now)
            assert changes == expected
        elif name == "advance":
            to = clock.now + float(given_)  # type: ignore[arg-type]
            assert many.tick(0.0, to=to) == singly.tick(0.0, to=to)
        elif name == "called" or open_calls[given_]:  # type: ignore[index]
            open_calls[given_] += 1 if name == "called" else -1  # type: ignore[index]
            act = many.called if name == "called" else many.ended
            other = singly.called if name == "called" else singly.ended
            assert act(given_) == other(given_)  # type: ignore[arg-type]
        assert num_ignored(many) == num_ignored(singly)
        assert [many.next_use(each) for each in range(12)] == [
            singly.next_use(each) for each in range(12)
        ]
