"""How predictable a log's calls are: sources listen to it, and are scored as in an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from scalesim.core import AgentId
from scalesim.distance import Estimates, Learned, Source
from scalesim.distance.clock import Clock
from scalesim.distance.distances import Distances
from scalesim.profile.calls import LoggedCall


class LastGap(Source):
    """The simplest predictor: as long as last time."""

    name = "last gap"

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[AgentId, float] = {}
        self._changed: dict[AgentId, float] = {}

    def called(self, agent: AgentId, now: float) -> None:
        before = self._last.get(agent)
        if before is not None:
            self._changed[agent] = now + (now - before)
        self._last[agent] = now

    def changes(self, now: float) -> Estimates:
        changed, self._changed = self._changed, {}
        return Estimates(tuple(changed), tuple(changed.values()), 0.5)


@dataclass(frozen=True, slots=True)
class Predicted:
    """``said``: share of calls after an agent's first that something was said of; the outcomes are
    shares of what was said. ``kept``: the share of LRU's misses that the learned predictor's order
    leaves in its own trial, ``None`` for others."""

    source: str
    said: float
    on_time: float
    early: float
    late: float
    never: float
    kept: float | None = None


def predictability(calls: Sequence[LoggedCall], day: float | None = None) -> list[Predicted]:
    """Each source by itself, and what was declared in the log."""
    rows = []
    learned = Learned(day=day)
    for source in (LastGap(), learned):
        distances = Distances(Clock())
        distances.add(source)
        rows.append(_listen(distances, source.name, calls, declare=False))
    rows[-1] = replace(rows[-1], kept=learned.trial.kept)
    if any(call.expect is not None for call in calls):
        rows.append(_listen(Distances(Clock()), "declared", calls, declare=True))
    return rows


def _listen(
    distances: Distances, name: str, calls: Sequence[LoggedCall], *, declare: bool
) -> Predicted:
    activations = 0
    for time, group in groupby(calls, key=lambda call: call.time):
        if time > distances.clock.now:
            distances.tick(time, to=time)
        seen: dict[AgentId, None] = {}
        for call in group:
            activations += call.agent not in seen
            seen[call.agent] = None
            distances.called(call.agent)
            distances.ended(call.agent)
            if declare and call.expect is not None:
                distances.expect(call.agent, call.expect)
    score = distances.scores()[name]
    again = max(1, activations - len({call.agent for call in calls}))
    met = score.on_time + score.early + score.late
    total = max(1, met + score.never)
    return Predicted(
        name, min(1.0, met / again), score.on_time / total, score.early / total,
        score.late / total, score.never / total,
    )  # fmt: skip
