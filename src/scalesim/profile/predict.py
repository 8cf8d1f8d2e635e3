"""Predictability of a log's calls: sources of predictions, scored as in an engine."""

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
    """The simplest predictor: each gap is as long as the last one."""

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
    """The score of a source. ``said`` is the share of calls, first ones excluded, that had a
    prediction; the outcomes are shares of the predictions. ``kept`` is the ratio of misses to LRU's
    in the learned source's trial; ``None`` for other sources."""

    source: str
    said: float
    on_time: float
    early: float
    late: float
    never: float
    kept: float | None = None


def predictability(calls: Sequence[LoggedCall], day: float | None = None) -> list[Predicted]:
    """The scores of each source by itself, and of the hints in the log."""
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
