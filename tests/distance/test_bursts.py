"""Bursts: the calls to come of an agent, from what bursts were like."""

from __future__ import annotations

import numpy as np
import pytest

from scalesim.distance.bursts import MAX_CALLS, Bursts


def play(bursts: Bursts, lengths: dict[str, int]) -> None:
    for agent, length in lengths.items():
        for _ in range(length):
            bursts.called(agent)
            bursts.ended(agent)
    bursts.tick()


def test_one_call_until_more_were_seen() -> None:
    assert Bursts().expected("ada") == 1.0


def test_bursts_of_one_length_are_counted_down() -> None:
    bursts, seen = Bursts(), []
    play(bursts, {"ada": 3, "bob": 3})
    for _ in range(5):
        seen.append(bursts.expected("eve"))
        bursts.called("eve")
        bursts.ended("eve")
    assert seen == [3.0, 2.0, 1.0, 1.0, 1.0]


def test_whoever_calls_again_where_few_do_has_more_to_say() -> None:
    bursts = Bursts()
    play(bursts, {str(n): 1 for n in range(9)} | {"ada": 6})
    assert bursts.expected("bob") == pytest.approx(1.5)
    bursts.called("bob")
    bursts.ended("bob")
    assert bursts.expected("bob") == pytest.approx(5.0)


def test_calls_that_are_open_together_are_one() -> None:
    bursts = Bursts()
    play(bursts, {"ada": 2})
    for _ in range(4):
        assert bursts.expected("bob") == 2.0
        bursts.called("bob")
    for _ in range(4):
        bursts.ended("bob")
    assert bursts.expected("bob") == 1.0


def test_an_open_call_goes_over_a_tick_and_a_forgotten_agent_is_gone() -> None:
    bursts = Bursts()
    bursts.called("ada")
    play(bursts, {"eve": 2})
    bursts.ended("ada")
    assert bursts.expected("ada") == 1.0 < bursts.expected("eve")
    bursts.forget("ada")
    assert bursts.expected("ada") == bursts.expected("eve")


@pytest.mark.parametrize("seed", range(5))
def test_the_expectation_is_the_mean_of_what_was_behind(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.geometric(0.4, 200).clip(1, MAX_CALLS)
    bursts = Bursts()
    play(bursts, {str(n): int(length) for n, length in enumerate(lengths)})
    for made in range(int(lengths.max())):
        behind = lengths[lengths > made] - made
        assert bursts.expected("x") == pytest.approx(behind.mean())
        bursts.called("x")
        bursts.ended("x")


def test_what_bursts_become_is_followed() -> None:
    bursts = Bursts()
    for length in [1] * 10 + [4] * 60:
        play(bursts, {"ada": length})
    assert bursts.expected("bob") == pytest.approx(4.0, abs=0.05)
