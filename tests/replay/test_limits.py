"""Nobody exceeds the roof, and nobody brings back less than Belady: all policies, random traces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalesim.replay.arms import Outcome, play
from scalesim.replay.hardware import HARDWARE, MODELS, CostModel
from scalesim.replay.machine import Machine
from scalesim.replay.peers.policies import REPLAY_POLICIES
from scalesim.replay.roof import Computed, Roof, roof
from scalesim.replay.scenario import Sizes, of_workload
from scalesim.replay.workloads import workload
from scalesim.trace.trace import TraceCall, TracePiece, TraceTick, with_truth

COST = CostModel(HARDWARE["rtx4090"], MODELS["llama-3.2-1b"])


def check(machine: Machine, ticks: list[TraceTick], warmup: int) -> tuple[Roof, list[Outcome]]:
    """Every policy against both bounds."""
    limit = roof(machine, ticks, warmup)
    outcomes = []
    for name, policy in REPLAY_POLICIES.items():
        one, simulation = play(machine, name, ticks, warmup=warmup, witness=True)
        assert simulation.log.turns == sum(len(tick.calls) for tick in ticks)  # none is left out
        outcomes.append(one)
        most = limit.turns_per_s if policy.limited else limit.resident_turns_per_s
        assert one.turns_per_s <= most * (1 + 1e-9), name
        assert one.loaded_bytes + one.rebuilt_bytes >= one.least_bytes, name
        assert one.rebuilt_bytes >= 0, name
    assert limit.turns_per_s <= limit.resident_turns_per_s
    return limit, outcomes


streams = st.integers(0, 5)
prompts = st.lists(
    st.builds(TracePiece, streams, st.integers(1, 70), st.sampled_from((0, 0, 0, 16, 40))),
    min_size=1, max_size=4,
).map(tuple)  # fmt: skip
turns = st.builds(
    TraceCall,
    st.none() | st.integers(0, 3),
    prompts,
    st.builds(TracePiece, streams | st.integers(100, 10_000), st.integers(1, 40)),
    st.integers(0, 2),
)


@given(
    st.lists(st.lists(turns, max_size=6), min_size=1, max_size=7),
    st.integers(22, 60),
    st.integers(1, 4),
    st.sampled_from((0.001, 0.01, 1.0)),
    st.integers(0, 2),
)
@settings(max_examples=12, deadline=None)
def test_on_any_trace(
    calls: list[list[TraceCall]], pool: int, running: int, link: float, warmup: int
) -> None:
    """Prompts that share whatever they like, answers that others have as prompts, calls by nobody,
    rounds in any order, pools that hold hardly one call."""
    ticks = with_truth(TraceTick(float(at), [], found) for at, found in enumerate(calls))
    for tick in ticks:
        for index, turn in enumerate(tick.calls):
            tick.calls[index] = replace(turn, expect=turn.truth)
    machine = Machine(COST, pool, 200, 330, running, 64, 16, link)
    check(machine, ticks, warmup)


@pytest.mark.parametrize("link", [0.003, 1.0])
@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("w1", {"agents": 24, "ticks": 6, "private": 256, "new": 24, "output": 20, "burst": 2}),
        ("w2", {"agents": 20, "ticks": 6, "private": 64, "shared": 32, "active": 0.3,
                "max_context": 400, "new": 40, "output": 24}),
        ("w4", {"agents": 10, "ticks": 4, "private": 256, "new": 32, "output": 8, "spread": 0.5}),
    ],
)  # fmt: skip
def test_on_workloads(name: str, knobs: dict[str, Any], link: float) -> None:
    sizes = Sizes("rtx4090", "llama-3.2-1b", 0.4, running=4, link_share=link)
    scenario = of_workload(*workload(name, **knobs), sizes)
    check(scenario.machine(sizes), list(scenario.ticks()), 2)


def test_an_adapter_is_read_and_not_computed() -> None:
    sizes = Sizes("rtx4090", "llama-3.2-1b", 0.6, running=4, adapter=True)
    kind, knobs = workload("w4", agents=6, ticks=3, private=64, new=16, output=8)
    scenario = of_workload(kind, knobs, sizes)
    check(scenario.machine(sizes), list(scenario.ticks()), 1)


def test_slots_full_of_equal_calls_come_near_the_roof() -> None:
    """What the roof is made of is what a machine does: calls that decode together, all resident."""
    calls = [
        TraceCall(agent, (TracePiece(agent, 64),), TracePiece(100 + agent, 400))
        for agent in range(4)
    ]
    machine = Machine(COST, 400, 400, 500, 4, 512, 16)
    ticks = [TraceTick(0.0, [], calls)]
    best, _ = play(machine, "resident", ticks, warmup=0)
    limit = roof(machine, ticks)
    assert 0.99 * limit.turns_per_s < best.turns_per_s <= limit.turns_per_s


def test_the_link_lowers_the_roof_where_a_tick_reads_more_than_the_pool_holds() -> None:
    calls = [
        TraceCall(agent, (TracePiece(agent, 640), TracePiece("x", 1)), TracePiece("y", 1))
        for agent in range(20)
    ]
    ticks = [TraceTick(float(at), [], calls) for at in range(3)]
    machine = Machine(COST, 200, 2000, 700, 8, 512, 16)
    whole = roof(machine, ticks, 1)
    slow = roof(replace(machine, link_share=0.01), ticks, 1)
    large = roof(replace(machine, link_share=0.01, device_pages=800), ticks, 1)
    assert slow.resident_turns_per_s == whole.resident_turns_per_s == large.turns_per_s
    # 800 pages are read in a tick, 600 of them brought back, or their 9 600 tokens computed
    per_tick = 20 / slow.turns_per_s
    loads = 600 * 16 * COST.kv_bytes(1) / (26e9 * 0.01)
    computes = 9600 * 2 * COST.model.num_params / (165e12 * 0.7)
    assert 1 / (1 / loads + 1 / computes) < per_tick < min(loads, computes) + 0.05


def test_the_tree_of_what_was_computed() -> None:
    import numpy as np

    def tokens(*values: int) -> Any:
        return np.array(values, np.int32)

    tree = Computed(2)
    tree.begin_tick()
    assert tree.add(tokens(1, 2, 3, 4, 5), 4) == (0, (0, 0))
    assert tree.add(tokens(1, 2, 9, 9), 4) == (2, (2, 2))  # the split is after two
    assert tree.add(tokens(1, 2, 3, 4, 5), 3) == (2, (2, 5))  # 3, 4 and 5 were counted before
    assert tree.pages_read == 0
    tree.begin_tick()
    assert tree.add(tokens(1, 2, 3, 4, 5, 6), 6) == (5, (5, 5))
    assert tree.pages_read == 2
    assert tree.add(tokens(1, 2, 9, 9, 7), 5) == (4, (4, 4))
    assert tree.pages_read == 3  # 1 and 2 are one page of both
