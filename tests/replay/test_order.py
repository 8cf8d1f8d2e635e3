"""The order of service: what a tick takes when the longest work goes first, and when the oldest."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from scalesim.replay.arms import Outcome, play
from scalesim.replay.scenario import Sizes, of_trace
from scalesim.trace.trace import TraceCall, TracePiece, TraceTick

SIZES = Sizes("h100", "qwen2.5-7b", 0.5, running=3)


def tick(time: int, calls: list[tuple[int, int]]) -> TraceTick:
    """A tick of calls, given by agent and length of the answer; an agent's are rounds."""
    rounds: dict[int, int] = {}
    made = []
    for agent, length in calls:
        nth = rounds[agent] = rounds.get(agent, -1) + 1
        prompt = (TracePiece(f"self {agent}", 256), TracePiece(f"news {time} {agent} {nth}", 32))
        said = TracePiece(f"said {time} {agent} {nth}", length)
        made.append(TraceCall(agent, prompt, said, round=nth))
    return TraceTick(float(time), [], made)


def played(ticks: list[TraceTick]) -> tuple[Outcome, Outcome]:
    """With the longest first, and by arrival; both serve each call once."""
    scenario = of_trace("ticks", ticks, SIZES, "none")
    machine = scenario.machine(SIZES)
    longest, _ = play(machine, "deadline", ticks, warmup=2)
    arrival, _ = play(replace(machine, order="arrival"), "deadline", ticks, warmup=2)
    assert longest.turns == arrival.turns
    return longest, arrival


@pytest.mark.parametrize("seed", [0, 1])
def test_a_long_answer_that_came_last_does_not_end_last(seed: int) -> None:
    draw = random.Random(seed)
    ticks = []
    for time in range(8):
        calls = [(agent, draw.randrange(8, 24)) for agent in range(9)]
        calls[-1] = (8, 120)
        ticks.append(tick(time, calls))
    longest, arrival = played(ticks)
    assert longest.turns_per_s > 1.1 * arrival.turns_per_s
    assert longest.tick_s[1] < arrival.tick_s[1]


def test_a_tick_of_equal_bursts_is_no_slower() -> None:
    ticks = [tick(time, [(agent, 16) for agent in range(9)] * 3) for time in range(8)]
    longest, arrival = played(ticks)
    assert longest.turns_per_s > 0.99 * arrival.turns_per_s
