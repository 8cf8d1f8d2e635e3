"""The whole engine on hostile streams: the CPU runner's texts, to the last bit of every logit, and
no two accesses to a page that nothing orders."""

from __future__ import annotations

from functools import cache

import pytest

from tests.device.hostile_device import HostileDevice
from tests.device.world import hostile, hostile_engine, runner_of
from tests.engine.test_same_texts import check_empty
from tests.engine.world import Turns, said, tiny_engine

TURNS = Turns(
    num_agents=6, rounds=3, prefix_len=40, output_len=10, stop_token_ids=tuple(range(0, 256, 6))
)
FULL = TURNS.num_agents * TURNS.pages_per_agent
QUARTER = max(FULL // 4, TURNS.pages_per_agent)


@cache
def unlimited() -> list[tuple[tuple[int, ...], int]]:
    with tiny_engine(policy="resident", digests=True) as engine:
        return said(TURNS.play(engine))


def devices() -> list[HostileDevice]:
    orders = [hostile(order="eager"), hostile(order="lazy")]
    favours = ("compute", "in", "out", "")
    return orders + [hostile(seed=seed, favoured=favours[seed % 4]) for seed in range(8)]


CASES = [(index, "deadline") for index in range(8)]
CASES += [(0, "lru-swap"), (1, "lru-swap"), (4, "lru-swap"), (5, "lru-recompute")]


@pytest.mark.parametrize(("index", "policy"), CASES)
def test_texts_are_the_cpu_runners(index: int, policy: str) -> None:
    device = devices()[index]
    with hostile_engine(
        device, policy=policy, device_pages=QUARTER, host_pages=FULL,
        graphs=index % 2 == 0,
    ) as engine:  # fmt: skip
        assert said(TURNS.play(engine, hint=lambda agent, turn: 1)) == unlimited()
        assert policy == "lru-recompute" or engine.parts.memory.counters.loaded_pages > 0
        runner = runner_of(engine.parts)
        assert runner.graphs.num_captures == len(runner.graphs.shapes)
    check_empty(engine)
