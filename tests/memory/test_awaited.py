"""Agents in buckets come out as from a sorted list; passing over those that nothing places changes
no order."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalesim.memory.audit.integrity import check_integrity
from scalesim.memory.manager import MemoryManager
from scalesim.memory.prefetch.wake_queue import WakeQueue
from scalesim.memory.tree.owner import AgentState, ReuseStats
from scalesim.memory.tree.segment import Segment
from tests.memory.test_residency import manager, settle, turn

TIMES = [-math.inf, -3.0, 0.0, 0.5, 3.0, 3.25, 17.0, 40.0, 41.0, 1e6, 2.0**60, math.inf]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "again", "discard", "take", "tick"]),
            st.integers(0, 9),
            st.sampled_from(TIMES) | st.floats(0.0, 300.0),
        ),
        max_size=120,
    )
)
def test_the_soonest_is_the_soonest(acts: list[tuple[str, int, float]]) -> None:
    agents = [AgentState(number, ReuseStats()) for number in range(10)]
    awaited, naive, now = WakeQueue(), set[int](), 0.0
    uses: dict[int, tuple[float, int]] = {}
    for seq, (act, number, time) in enumerate(acts):
        agent = agents[number]
        if act == "tick":
            now += min(abs(time), 50.0)
        elif act == "discard" or (act == "again" and agent.next_use is None):
            awaited.discard(agent)
            naive.discard(number)
        elif act == "take" and (soonest := awaited.peek()) is not None:
            awaited.discard(soonest)
            naive.remove(soonest.id)  # type: ignore[arg-type]
        elif act in ("add", "again"):
            if act == "add":
                agent.next_use, agent.next_seq = time, seq
                uses[number] = (time, seq)
            awaited.add(agent, now)
            naive.add(number)
        first = min(naive, key=lambda each: uses[each], default=None)
        found = awaited.peek()
        assert (None if found is None else found.id) == first
        assert len(awaited) == len(naive)


def test_stale_entries_do_not_pile_up() -> None:
    agents = [AgentState(number, ReuseStats()) for number in range(50)]
    awaited, rng = WakeQueue(), random.Random(1)
    for seq in range(20_000):
        agent = rng.choice(agents)
        agent.next_use, agent.next_seq = rng.choice([-1.0, rng.uniform(0, 1e5)]), seq
        awaited.add(agent, 0.0)
        assert awaited.num_entries <= 2 * len(awaited) + 64


@pytest.mark.parametrize("policy", ["deadline", "lru-swap"])
@pytest.mark.parametrize("host", [12, 60])
def test_who_is_passed_over_has_nothing_in_an_order(policy: str, host: int) -> None:
    """Beside a manager whose agents are never passed over: the same victims throughout."""
    ours, naive = manager(14, host, policy), manager(14, host, policy)
    rng = random.Random(3)
    passed_over = 0
    for step in range(400):
        agent, act = rng.randrange(8), rng.random()
        at = rng.choice([None, step + 1.0, step + rng.uniform(0.0, 40.0)])
        other = rng.randrange(8)
        for memory in (ours, naive):
            memory.timing.now = float(step)
            if memory is naive:
                for state in memory.owners.agents.values():
                    state.placed = True
            if act < 0.4:
                turn(memory, agent, 1 + agent % 3)
            elif act < 0.9:
                memory.hint([(agent, at)])
            elif act < 0.95:
                memory.fork(agent, other)
            else:
                memory.owners.drop(agent)
            memory.plan(float(step))
            settle(memory)
            check_integrity(memory)
        assert heads(ours) == heads(naive), step
        passed_over += sum(not state.placed for state in ours.owners.agents.values())
    assert passed_over > 100  # it is tested at all


def heads(memory: MemoryManager) -> list[int | None]:
    """The first in line of each order, by number."""
    ranking = memory.ranking
    first: list[Segment | None] = [ranking.farthest_on_device(), ranking.farthest_dirty()]
    return [None if segment is None else segment.seq for segment in first]


@given(
    st.lists(st.sampled_from(TIMES) | st.floats(0.0, 300.0), min_size=1, max_size=60),
    st.floats(0.0, 50.0),
    st.randoms(use_true_random=False),
)
def test_many_at_once_are_put_where_each_would_be(
    times: list[float], now: float, rng: random.Random
) -> None:
    ones, many = (
        [AgentState(number, ReuseStats()) for number in range(len(times))] for _ in range(2)
    )
    one_by_one, at_once = WakeQueue(), WakeQueue()
    for again in range(3):  # others are there already, and some are moved
        rng.shuffle(times)
        for agents in (ones, many):
            for agent, time in zip(agents, times, strict=True):
                agent.next_use, agent.next_seq = time, again * len(times) + agent.id
        for agent in ones:
            one_by_one.add(agent, now)
        at_once.add_all(many, now)
    assert len(at_once) == len(one_by_one) == len(times)
    for awaited in (one_by_one, at_once):
        order = []
        while (agent := awaited.peek()) is not None:
            order.append(agent.id)
            awaited.discard(agent)
        assert order == sorted(range(len(times)), key=lambda number: (times[number], number))


ADVICE = st.lists(
    st.tuples(
        st.integers(0, 7),
        st.none() | st.just(math.nan) | st.sampled_from(TIMES) | st.floats(-5.0, 60.0),
    ),
    min_size=1,
    max_size=64,
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["deadline", "lru-swap"]), st.lists(ADVICE, min_size=1, max_size=6))
def test_advice_at_once_is_advice_one_by_one(
    policy: str, rounds: list[list[tuple[int, float | None]]]
) -> None:
    """Also what takes back, or names an agent again, in one breath: the same uses, orders and
    agents that are awaited, whatever the number of changes."""
    at_once, one_by_one = manager(14, 12, policy), manager(14, 12, policy)
    for memory in (at_once, one_by_one):
        for agent in range(6):
            turn(memory, agent, 1 + agent % 3)
    for step, advice in enumerate(rounds):
        for memory in (at_once, one_by_one):
            memory.timing.now = float(step)
        at_once.hint(advice)
        for agent, at in advice:
            one_by_one.hint([(agent, at)])
        for memory in (at_once, one_by_one):
            check_integrity(memory)
        assert uses(at_once) == uses(one_by_one)
        assert heads(at_once) == heads(one_by_one)
        for memory in (at_once, one_by_one):
            memory.plan(float(step))
            settle(memory)
            turn(memory, step % 8, 2)


def uses(memory: MemoryManager) -> list[tuple[object, float | None, bool]]:
    states = memory.owners.agents.values()
    return sorted((state.id, state.next_use, state.awaited is not None) for state in states)  # type: ignore[type-var]
