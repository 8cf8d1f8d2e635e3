"""The statistics of a log, as one value that converts to JSON."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np

from scalesim.core import AgentId
from scalesim.profile.caches import COLD, curve, reuse_distances
from scalesim.profile.calls import LoggedCall
from scalesim.profile.predict import predictability
from scalesim.profile.prompts import breaks

SHARES = (0.05, 0.1, 0.2, 0.25, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0)
_WINDOWS = 40


@dataclass(frozen=True, slots=True)
class Profile:
    """``series`` holds what is plotted: lists of equal length by name."""

    source: str
    form: str
    totals: dict[str, float]
    gaps: dict[str, float]
    reuse: dict[str, float]
    burst: dict[str, float]
    prompts: dict[str, float]
    misses: list[dict[str, float]]
    predicted: list[dict[str, Any]]
    breaks: list[dict[str, Any]]
    series: dict[str, list[float]]


def characterise(
    calls: Sequence[LoggedCall], source: str, form: str, day: float | None = None
) -> Profile:
    """All statistics of a log. Gaps and caches count *activations*: all calls of an agent in one
    tick are one activation, because within a burst the agent's state is cached anyway."""
    acts = activations(calls)
    order = [agent for _, agent in acts]
    agents = set(order)
    times = np.array([time for time, _ in acts])
    per_tick = Counter(time for time, _ in acts)
    span = max(1.0, times[-1] - times[0] + 1.0)
    gaps = _gaps(acts)
    reuse = reuse_distances(order)
    reuse = reuse[reuse != COLD]
    bursts = np.array(list(Counter((call.time, call.agent) for call in calls).values()))
    lengths = np.array([len(call.tokens) for call in calls])
    outputs = np.array([call.output_len for call in calls])
    by_agent = np.array(list(Counter(order).values()))
    top = np.sort(by_agent)[::-1][: max(1, len(by_agent) // 10)]
    return Profile(
        source=source,
        form=form,
        totals={
            "calls": len(calls),
            "activations": len(acts),
            "agents": len(agents),
            "ticks": span,
            "ticks with calls": len(per_tick),
            "active share of a tick": len(acts) / span / len(agents),
            "share of the busiest tenth": float(top.sum() / by_agent.sum()),
        },
        gaps=_quantiles(gaps) | {"cv": float(gaps.std() / gaps.mean()) if len(gaps) else 0.0},
        reuse=_quantiles(reuse),
        burst=_quantiles(bursts),
        prompts=_quantiles(lengths) | {"output mean": float(outputs.mean())},
        misses=curve(order, SHARES),
        predicted=[asdict(row) for row in predictability(calls, day)],
        breaks=[asdict(row) for row in breaks(calls)],
        series=_series(acts, times, gaps, reuse, len(agents)),
    )


def activations(calls: Sequence[LoggedCall]) -> list[tuple[float, AgentId]]:
    """The activations as (time, agent), in order; each agent at most once per tick."""
    found = []
    for time, group in groupby(calls, key=lambda call: call.time):
        found += [(time, agent) for agent in dict.fromkeys(call.agent for call in group)]
    return found


def _gaps(acts: Sequence[tuple[float, AgentId]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    last: dict[AgentId, float] = {}
    gaps = []
    for time, agent in acts:
        if agent in last:
            gaps.append(time - last[agent])
        last[agent] = time
    return np.array(gaps, np.float64)


def _quantiles(values: np.ndarray[Any, Any]) -> dict[str, float]:
    if not len(values):
        return {}
    names = ("p10", "p50", "p90", "p99")
    found = np.percentile(values, (10, 50, 90, 99))
    return {"mean": float(values.mean())} | dict(zip(names, map(float, found), strict=True))


def _series(
    acts: Sequence[tuple[float, AgentId]],
    times: np.ndarray[Any, Any],
    gaps: np.ndarray[Any, Any],
    reuse: np.ndarray[Any, Any],
    num_agents: int,
) -> dict[str, list[float]]:
    """Activity and working set by window of the log; distributions as sorted samples."""
    edges = np.linspace(times[0], times[-1] + 1e-9, _WINDOWS + 1)
    window = np.clip(np.searchsorted(edges, times, "right") - 1, 0, _WINDOWS - 1)
    sets: dict[int, set[AgentId]] = defaultdict(set)
    for index, (_, agent) in zip(window.tolist(), acts, strict=True):
        sets[index].add(agent)
    quantiles = np.linspace(0.0, 1.0, 101)
    return {
        "window": edges[:-1].tolist(),
        "activations": np.bincount(window, minlength=_WINDOWS).astype(float).tolist(),
        "working set": [len(sets[index]) / num_agents for index in range(_WINDOWS)],
        "share": quantiles.tolist(),
        "gap": np.quantile(gaps, quantiles).tolist() if len(gaps) else [],
        "reuse": np.quantile(reuse, quantiles).tolist() if len(reuse) else [],
    }
