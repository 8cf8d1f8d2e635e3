"""Requests' lives under every schedule, at random and as Hypothesis likes them; and what must not
change a text: the order of requests, neighbours, sharing, pools, blocks, policies, chunks."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalesim.config import SchedulerConfig
from scalesim.memory.eviction.policies import POLICIES
from scalesim.testing.walks import play, run
from tests.machines.request_walk import RequestWalk
from tests.machines.request_world import AGENTS, KINDS
from tests.machines.scheduler_world import SchedulerWorld, Setting
from tests.machines.schedules import SCHEDULES


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lives_under_a_schedule(schedule: str) -> None:
    for seed in range(3):
        world = run(RequestWalk(seed, 60, schedule))
        assert world.num_ended > 0


small, agents = st.integers(0, 9), st.integers(0, AGENTS - 1)
picks = st.integers(0, 999)
OPERATIONS = st.one_of(
    st.tuples(st.just("ask"), st.tuples(agents, st.sampled_from(KINDS), picks, small, small)),
    st.tuples(st.just("iterate"), st.tuples(st.integers(1, 4))),
    st.tuples(st.just("happen"), st.tuples(small)),
    st.tuples(st.just("cancel"), st.tuples(picks)),
    st.tuples(st.just("fail_copy"), st.tuples()),
    st.tuples(st.just("fork"), st.tuples(agents, agents)),
    st.tuples(st.just("forget"), st.tuples(agents)),
    st.tuples(st.just("load_adapter"), st.tuples(small, small)),
    st.tuples(st.just("unload_adapter"), st.tuples(small)),
)


@settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**16),
    schedule=st.sampled_from(sorted(SCHEDULES)),
    operations=st.lists(OPERATIONS, max_size=40),
)
def test_lives_as_hypothesis_likes_them(
    seed: int, schedule: str, operations: list[tuple[str, tuple[Any, ...]]]
) -> None:
    walk = RequestWalk(seed, 0, schedule)
    for _ in play(walk.world(), [*operations, ("finish", ())]):
        pass


ASKED = 14
Texts = dict[int, list[int]]


def texts(
    setting: Setting,
    *,
    order: int = 0,
    noise: int = 0,
    hint: Callable[[int], float | None] = lambda agent: None,
) -> Texts:
    """What request ``n`` of a fixed set says, by ``n``: asked in an order of the seed ``order``,
    among ``noise`` other requests."""
    rng = random.Random(1)
    shared = [rng.randrange(9) for _ in range(7)]
    prompts = [shared + [rng.randrange(9) for _ in range(n % 5 + 1)] for n in range(ASKED)]
    world = SchedulerWorld(setting)
    shuffled = random.Random(order)
    numbers = shuffled.sample(range(ASKED), ASKED) if order else list(range(ASKED))
    asked = {}
    for n in numbers:
        agent = n % 5
        world.memory.hint([(agent, hint(agent))])
        asked[n] = world.add(agent, prompts[n], 4 + n % 3, key=n + 1)
        for _ in range(shuffled.randrange(3) if noise else 0):
            stranger = 100 + shuffled.randrange(noise)
            world.add(stranger, [stranger % 97] * shuffled.randint(1, 12), 5)
        world.iterate()
    world.run(20_000, check_every=5)
    world.close()
    return {n: asked[n].output.tolist() for n in range(ASKED)}


BASE = Setting(64, block_size=4)
SMALL_CHUNKS = SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=3, safe_point_tokens=1)
VARIANTS: dict[str, tuple[Setting, dict[str, Any]]] = {
    "another order": (BASE, {"order": 1}),
    "yet another order": (BASE, {"order": 2}),
    "noise": (BASE, {"order": 3, "noise": 5}),
    "noise in a small pool": (Setting(12, 0.5, "lru-swap"), {"order": 4, "noise": 5}),
    "a pool for a few": (Setting(8), {}),
    "no host": (Setting(8, 0.0), {}),
    "blocks of one": (Setting(40, block_size=1), {}),
    "blocks of sixteen": (Setting(6, block_size=16), {}),
    "small chunks": (Setting(16, scheduler=SMALL_CHUNKS), {"order": 5}),
    "two in flight, failing copies": (Setting(9, steps_in_flight=2, failure_rate=0.2), {}),
    "right hints": (Setting(12), {"hint": lambda agent: float(agent)}),
    "wrong hints": (Setting(12), {"hint": lambda agent: 1e9 - agent}),
    **{f"policy {name}": (Setting(10, 1.0, name), {"order": 6}) for name in POLICIES},
}


@pytest.fixture(scope="module")
def alone() -> Texts:
    return texts(BASE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_must_not_change_a_text(variant: str, alone: Texts) -> None:
    setting, options = VARIANTS[variant]
    assert texts(setting, **options) == alone
