"""Workloads W1 to W5: seeded generators of calls, with their times and lengths.

Each models a family of agent simulations after its public code and logs (docs/replay.md has the
source of every figure). A schedule gives the times of an agent's acts, ``Texts`` their prompts, and
``hints`` derives from the true times what would have been known. Nothing here depends on a policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from scalesim.replay.hints import WorkloadHints
from scalesim.replay.knobs import Knobs
from scalesim.replay.schedules import Feed, Plans, Rounds, Schedule, Shares, Town, TurnTaking
from scalesim.replay.texts import Texts
from scalesim.trace.trace import Hint, TraceCall, TraceTick


@dataclass(frozen=True, slots=True)
class Kind:
    """A family of workloads: its schedule, and the knobs that its sources suggest."""

    name: str
    schedule: Callable[[Knobs], Schedule]
    knobs: Knobs


def _rates(knobs: Knobs) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    draws = np.random.default_rng((knobs.seed, 7)).lognormal(0.0, knobs.sigma, knobs.agents)
    rates: np.ndarray[tuple[int], np.dtype[np.float64]] = draws / draws.mean() * knobs.active
    return rates


WORKLOADS = {
    kind.name: kind
    for kind in (
        # city of plans (AgentSociety): 300 s a tick, an action lasts 5 to 480 minutes
        Kind(
            "w1",
            lambda knobs: Plans(knobs.agents, knobs.seed),
            Knobs(agents=1000, ticks=96, shared=256, private=640, new=256, output=128, burst=3),
        ),
        # social feed (OASIS): activity is a coin toss with the user's own rate; history grows
        Kind(
            "w2",
            lambda knobs: Feed(_rates(knobs), knobs.seed),
            Knobs(agents=1000, ticks=60, shared=2048, private=96, new=1152, output=168,
                  sigma=1.3, growth=1.0, max_context=8192, active=0.1),
        ),
        # game town (Generative Agents): 10 s a tick, bursts of short calls, conversations
        Kind(
            "w3",
            lambda knobs: Town(knobs.agents, knobs.seed),
            Knobs(agents=500, ticks=360, shared=304, private=400, new=240, output=24, burst=9),
        ),
        # rounds (EconAgent, TinyTroupe): all agents act in each tick, in order
        Kind(
            "w4",
            lambda knobs: Rounds(knobs.agents, knobs.seed, knobs.shuffled),
            Knobs(agents=200, ticks=12, shared=0, private=2048, new=192, output=100),
        ),
        # turn taking (Concordia): one entity a tick and a game master who is always needed
        Kind(
            "w5",
            lambda knobs: TurnTaking(knobs.agents, knobs.seed, knobs.shuffled),
            Knobs(agents=50, ticks=200, shared=512, private=3072, new=256, output=200, burst=5),
        ),
    )
}  # fmt: skip
PAPER_CLASSES = ("independent", "interaction", "path")


def paper(cls: str, agents: int, ticks: int = 20, seed: int = 0) -> tuple[Kind, Knobs]:
    """The published evaluation's set-up (arXiv 2601.21473): a fifth of the agents acts in each
    tick. Its lengths were not disclosed; these are ours."""
    knobs = Knobs(agents=agents, ticks=ticks, seed=seed, private=1024, new=128, output=64)
    return Kind(cls, lambda knobs: Shares(knobs.agents, knobs.seed, cls), knobs), knobs


def workload(name: str, **changes: object) -> tuple[Kind, Knobs]:
    """The kind called ``name``, and its knobs with ``changes``."""
    kind = WORKLOADS[name]
    given = {key: value for key, value in changes.items() if value is not None}
    return kind, replace(kind.knobs, **given)  # type: ignore[arg-type]


def generate(kind: Kind, knobs: Knobs, first_tokens: int = 0) -> Iterator[TraceTick]:
    """The ticks of a workload; tick 0 is the opening. Each prompt begins with ``first_tokens``
    tokens of the agent's own, which stand for an adapter's pages."""
    schedule, texts = kind.schedule(knobs), Texts(knobs.seed, knobs, first_tokens)
    hints = WorkloadHints(knobs, schedule.mean_gap)
    due: dict[int, list[tuple[float, int]]] = {}
    opening = TraceTick(0.0)
    for agent in range(knobs.agents):
        first = schedule.first(agent)
        due.setdefault(int(first), []).append((first, agent))
        told = hints.at_first(agent, first)
        if knobs.opening:
            opening.calls.append(texts.opening(agent, told, first))
        else:
            opening.hints.append(Hint(agent, told, first))
    yield opening
    for time in range(1, knobs.ticks + 1):
        calls: list[TraceCall] = []
        for acts_at, agent in sorted(due.pop(time, ())):
            planned = schedule.after(agent, acts_at)
            expect, truth = hints.about(agent, time, acts_at, planned)
            due.setdefault(int(truth), []).append((truth, agent))
            calls += texts.calls(agent, time, schedule.rounds(agent, time), expect, truth)
        yield TraceTick(float(time), hints.take_late(time), calls)
