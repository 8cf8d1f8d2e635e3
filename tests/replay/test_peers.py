"""Policies of others: their rules, on the real objects of a replay."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalesim.replay.arms import Outcome, play
from scalesim.replay.peers.policies import PEERS, planning_of, replay_policy
from scalesim.replay.peers.ttl import best_ttl
from scalesim.replay.scenario import Sizes, of_trace, of_workload
from scalesim.replay.workloads import workload
from scalesim.trace.trace import TraceCall, TracePiece, TraceTick

SIZES = Sizes("rtx4090", "llama-3.2-1b", residency=0.3, running=2, link_share=0.05)


def outcome(policy: str, name: str, **changes: int) -> Outcome:
    kind, knobs = workload(name, **changes)
    scenario = of_workload(kind, knobs, SIZES)
    return play(scenario.machine(SIZES), policy, scenario.ticks(), witness=True)[0]


@given(
    st.lists(st.floats(0.0, 100.0), min_size=1, max_size=12),
    st.floats(0.0, 200.0),
)
def test_the_time_to_live_is_worth_most(pauses: list[float], reload_s: float) -> None:
    def worth(ttl_s: float) -> float:
        saved = sum(reload_s for pause in pauses if pause <= ttl_s)
        return (saved - sum(min(pause, ttl_s) for pause in pauses)) / len(pauses)

    found = best_ttl(pauses, reload_s)
    most = max([0.0, *(worth(pause) for pause in pauses)])
    assert worth(found) == pytest.approx(most, abs=1e-6) or found == 0.0 == pytest.approx(most)


def one_often_many_seldom() -> list[TraceTick]:
    """Agent 0 calls in every fourth tick, the others in turn, 24 times as seldom: between two calls
    of agent 0 come more of them than the pool holds."""
    ticks = []
    for index in range(240):
        agent = 0 if index % 4 == 0 else 1 + index % 24
        prompt = (TracePiece(agent, 320), TracePiece(1_000 + index, 20))
        call = TraceCall(agent, prompt, TracePiece(10_000 + index, 4), 0)
        ticks.append(TraceTick(float(index), [], [call]))
    return ticks


def test_a_time_to_live_keeps_who_returns_soon() -> None:
    sizes = replace(SIZES, residency=0.17, running=1, link_share=0.002)
    scenario = of_trace("often", one_often_many_seldom(), sizes, "none")
    machine = scenario.machine(sizes)
    ttl, lru = (
        play(machine, policy, scenario.ticks(), warmup=120)[0] for policy in ("ttl", "lru-swap")
    )
    assert ttl.loaded_bytes < 0.9 * lru.loaded_bytes


@pytest.mark.parametrize("policy", PEERS)
def test_a_peer_has_choices_of_its_own(policy: str) -> None:
    """A peer that did what one of ours does would be no comparison."""
    planning = planning_of(replay_policy(policy))
    assert planning != planning_of(replay_policy("deadline"))
    assert replay_policy(policy).name == policy


def test_early_loads_bring_no_more_waits_than_loads_on_demand() -> None:
    early = outcome("early", "w4", agents=24, ticks=4, private=512)
    demand = outcome("lru-swap", "w4", agents=24, ticks=4, private=512)
    assert early.waited < demand.waited


def test_short_ends_are_computed_again_before_anything_else_leaves() -> None:
    """Ends that are dropped first are those that cost least to bring back."""
    tail = outcome("tail-lru", "w1", agents=40, ticks=8)
    plain = outcome("lru-swap", "w1", agents=40, ticks=8)
    assert tail != plain
    assert tail.turns == plain.turns
