"""The generators: seeded, exact where they say so, and near their sources' figures."""

from __future__ import annotations

import pytest

from scalesim.replay.workloads import WORKLOADS, generate, paper, workload
from scalesim.trace.trace import TraceTick, with_truth


def ticks_of(name: str, **changes: object) -> list[TraceTick]:
    kind, knobs = workload(name, **changes)
    return list(generate(kind, knobs))


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_seed_is_a_workload(name: str) -> None:
    assert ticks_of(name, agents=30, ticks=10) == ticks_of(name, agents=30, ticks=10)
    assert ticks_of(name, agents=30, ticks=10) != ticks_of(name, agents=30, ticks=10, new=9)


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("mode", ["exact", "interrupted"])
def test_the_stated_truth_is_what_comes(name: str, mode: str) -> None:
    ticks = ticks_of(name, agents=30, ticks=40, hints=mode, interrupts=0.3)
    for told, seen in zip(ticks, with_truth(ticks), strict=True):
        for call, real in zip(told.calls, seen.calls, strict=True):
            if real.truth is not None and real.truth >= told.time + 1:
                assert call.truth is not None and int(call.truth) == int(real.truth)
            if mode == "exact":
                assert call.expect == call.truth


def share(ticks: list[TraceTick], agents: int) -> float:
    """Of the agents that act in a tick, on average, after the opening."""
    acting = [len({call.agent for call in tick.calls}) for tick in ticks[1:]]
    return sum(acting) / len(acting) / agents


def test_how_many_act_is_near_the_sources() -> None:
    assert 0.04 < share(ticks_of("w1", agents=300, ticks=100), 300) < 0.10  # 5-8 % by day
    assert 0.08 < share(ticks_of("w2", agents=300, ticks=48, active=0.1, sigma=0.0), 300) < 0.12
    assert 0.01 < share(ticks_of("w3", agents=300, ticks=300), 300) < 0.03  # 1.5-2 %
    assert share(ticks_of("w4", agents=30, ticks=6), 30) == 1.0
    kind, knobs = paper("independent", 200, ticks=60)
    assert 0.17 < share(list(generate(kind, knobs)), 200) < 0.24  # a fifth


def test_hint_modes_say_what_they_say() -> None:
    def hints(mode: str) -> list[tuple[float | None, float]]:
        ticks = ticks_of("w1", agents=80, ticks=40, hints=mode)[1:]
        return [(call.expect, call.truth or 0.0) for tick in ticks for call in tick.calls]

    assert all(expect is None for expect, _ in hints("none"))
    assert all(expect is None for expect, _ in hints("stale"))
    early = [truth < expect for expect, truth in hints("interrupted") if expect != truth]
    assert early and all(early)  # hints are late, never early
    wrong = [expect != truth for expect, truth in hints("random")]
    assert sum(wrong) > 0.9 * len(wrong)
    late = ticks_of("w1", agents=80, ticks=40, hints="stale", stale=3)
    assert any(tick.hints for tick in late)
    assert all(hint.expect == hint.truth for tick in late for hint in tick.hints)
