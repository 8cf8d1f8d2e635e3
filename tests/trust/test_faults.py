"""Each fault point at its middle call, every second one for ever: a sample of the sweep.
``python -m tests.long faults`` has every call."""

from __future__ import annotations

import pytest

from scalesim.engine.engine import Engine
from scalesim.errors import ScaleSimError
from scalesim.requests.reply import Reply
from tests.trust import faults
from tests.trust.workload import Text, make_parts, oracle

REACHED = faults.reach()
POINTS = {name: point for name, point in faults.points().items() if REACHED[name]}
EARLY = [name for name, point in POINTS.items() if not point.late]
LATE = [name for name, point in POINTS.items() if point.late]
SAMPLE = [(name, "once") for name in EARLY + LATE[1::2]] + [
    (name, "for ever") for name in EARLY[::2]
]


@pytest.fixture(scope="module")
def texts() -> dict[str, list[Text]]:
    return oracle()


@pytest.mark.parametrize(("name", "mode"), SAMPLE)
def test_a_fault_costs_no_agent_and_no_page(
    name: str, mode: str, texts: dict[str, list[Text]]
) -> None:
    nth = (REACHED[name] + 1) // 2 if mode == "once" else 1
    faults.run(POINTS[name], nth, mode, texts)


@pytest.mark.parametrize("name", ["runner: collect", "link: poll", "MemoryManager.commit"])
def test_a_fault_with_two_steps_in_flight(name: str, texts: dict[str, list[Text]]) -> None:
    for nth in (1, 7, 20):
        faults.run(POINTS[name], nth, "once", texts, steps_in_flight=2)


def test_a_fault_that_strikes_is_a_fault(texts: dict[str, list[Text]]) -> None:
    """The sweep is not void: what it throws arrives, and state was made anew."""
    assert faults.run(POINTS["MemoryManager.commit"], 3, "once", texts).restarts == 1
    outcome = faults.run(POINTS["runner: launch"], 5, "for ever", texts)
    assert outcome.died and outcome.hit > 0


def test_a_fault_on_the_engines_own_thread() -> None:
    """Callers who wait get their texts; under a fault for ever, a typed error at once."""
    said: dict[str, list[Text]] = {}
    for mode, nth in (("once", 0), ("once", 2), ("for ever", 1)):
        with (
            faults.planted(POINTS["MemoryManager.commit"], faults.Fault(nth, mode)),
            Engine(make_parts(0, 1, "quarantine")) as engine,
        ):
            requests = [
                engine.agent(name).request([index] * 9, max_tokens=5, seed=1, ignore_eos=True)
                for index, name in enumerate("abc")
            ]
            replies = engine.run(requests, return_exceptions=True)
            restarts = engine.stats.restarts
        said[f"{mode} {nth}"] = [one.token_ids for one in replies if isinstance(one, Reply)]
        assert (restarts > 0) == (nth > 0)
        assert all(isinstance(one, (Reply, ScaleSimError)) for one in replies)
    assert said["once 0"] == said["once 2"] and len(said["once 0"]) == 3


def test_runs_repeat_exactly() -> None:
    """The N-th call of a sweep is the N-th call of every run."""
    assert faults.reach() == REACHED
