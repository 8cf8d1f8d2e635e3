"""The generators: seeded, exact where they say so, and near their sources' figures."""

from __future__ import annotations

import pytest

from scalesim.errors import ConfigError
from scalesim.replay.workloads import WORKLOADS, generate, paper, workload
from scalesim.trace.trace import TraceStep, with_truth


def steps_of(name: str, **changes: object) -> list[TraceStep]:
    kind, knobs = workload(name, **changes)
    return list(generate(kind, knobs))


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_seed_is_a_workload(name: str) -> None:
    assert steps_of(name, agents=30, steps=10) == steps_of(name, agents=30, steps=10)
    assert steps_of(name, agents=30, steps=10) != steps_of(name, agents=30, steps=10, new=9)


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("mode", ["exact", "interrupted"])
def test_the_stated_truth_is_what_comes(name: str, mode: str) -> None:
    steps = steps_of(name, agents=30, steps=40, hints=mode, interrupts=0.3)
    for told, seen in zip(steps, with_truth(steps), strict=True):
        for turn, real in zip(told.turns, seen.turns, strict=True):
            if real.truth is not None and real.truth >= told.time + 1:
                assert turn.truth is not None and int(turn.truth) == int(real.truth)
            if mode == "exact":
                assert turn.expect == turn.truth


def share(steps: list[TraceStep], agents: int) -> float:
    """Of the agents that act in a step, on average, after the opening."""
    acting = [len({turn.agent for turn in step.turns}) for step in steps[1:]]
    return sum(acting) / len(acting) / agents


def test_how_many_act_is_near_the_sources() -> None:
    assert 0.04 < share(steps_of("w1", agents=300, steps=100), 300) < 0.10  # 5-8 % by day
    assert 0.08 < share(steps_of("w2", agents=300, steps=48, active=0.1, sigma=0.0), 300) < 0.12
    assert 0.01 < share(steps_of("w3", agents=300, steps=300), 300) < 0.03  # 1.5-2 %
    assert share(steps_of("w4", agents=30, steps=6), 30) == 1.0
    kind, knobs = paper("independent", 200, steps=60)
    assert 0.17 < share(list(generate(kind, knobs)), 200) < 0.24  # a fifth


def test_hint_modes_say_what_they_say() -> None:
    def hints(mode: str) -> list[tuple[float | None, float]]:
        steps = steps_of("w1", agents=80, steps=40, hints=mode)[1:]
        return [(turn.expect, turn.truth or 0.0) for step in steps for turn in step.turns]

    assert all(expect is None for expect, _ in hints("none"))
    assert all(expect is None for expect, _ in hints("stale"))
    early = [truth < expect for expect, truth in hints("interrupted") if expect != truth]
    assert early and all(early)  # hints are late, never early
    wrong = [expect != truth for expect, truth in hints("random")]
    assert sum(wrong) > 0.9 * len(wrong)
    late = steps_of("w1", agents=80, steps=40, hints="stale", stale=3)
    assert any(step.hints for step in late)
    assert all(hint.expect == hint.truth for step in late for hint in step.hints)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown workload 'w9'"):
        workload("w9")
    with pytest.raises(ConfigError, match="agents=0"):
        workload("w1", agents=0)
    with pytest.raises(ConfigError, match="wrong=2"):
        workload("w1", wrong=2.0)
