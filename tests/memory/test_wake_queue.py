"""Agents in buckets come out as from a sorted list; passing over those that nothing places changes
no order."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
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
                    state.may_be_ranked = True
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
        passed_over += sum(not state.may_be_ranked for state in ours.owners.agents.values())
    assert passed_over > 100  # it is tested at all


def heads(memory: MemoryManager) -> list[int | None]:
    """The first in line of each order, by number."""
    ranking = memory.ranking
    first: list[Segment | None] = [ranking.farthest_on_device(), ranking.farthest_dirty()]
    return [None if segment is None else segment.seq for segment in first]
