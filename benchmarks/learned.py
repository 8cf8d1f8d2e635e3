"""What the learned source is worth with nobody telling anything, and what anybody could make of it.

A cache of agents: the share of calls that find their agent gone, under last use, under the learned
source, under exact hints, and at best (Belady). *The law*: an order by one who knows how likely
which pauses are (from another run of the workload, ten times as long, by an agent's last pause),
but not the draws: no statistics of pauses can promise more. Then the same in replay, with bytes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.agent_cache import Ticks, acts, belady, misses
from benchmarks.report import Report, table
from scalesim.distance import Estimates, Learned, Source
from scalesim.replay.arms import Outcome, play
from scalesim.replay.scenario import Sizes, of_workload
from scalesim.replay.workloads import workload

SHARES = (0.1, 0.25, 0.5, 0.75)
LONGEST = 400  # ticks; longer pauses are alike


@dataclass(frozen=True)
class Case:
    """``agents`` and ``ticks``: of the cache; ``replayed``: knobs of the replay."""

    name: str
    agents: int
    ticks: int
    replayed: dict[str, Any]
    warmup: int


CASES = (
    Case("w1", 400, 400, {"agents": 200, "ticks": 200, "burst": 2}, 100),
    Case("w2", 300, 240, {"agents": 100, "ticks": 80, "new": 300, "output": 40}, 40),
    Case("w3", 300, 1600, {"agents": 150, "ticks": 900, "burst": 2}, 450),
    Case("w4", 100, 60, {"agents": 100, "ticks": 14}, 4),
)
QUICK = (Case("w4", 40, 12, {"agents": 20, "ticks": 5}, 2),)
ARMS = {
    "lru-swap": ("lru-swap", "none"),
    "deadline, nothing known": ("deadline", "none"),
    "deadline, learned": ("deadline", "none"),
    "deadline, exact hints": ("deadline", "exact"),
}


class Law(Source):
    """Says after each tick what the law says: where an agent that has waited so long comes in the
    order. ``distance`` is ``[kinds, LONGEST + 1]``, by the last pause's octave and the age."""

    name = "law"
    judges_itself = True

    def __init__(self, agents: int, distance: Any) -> None:
        super().__init__()
        self._distance = distance
        self._last = np.full(agents, np.nan)
        self._kind = np.zeros(agents, np.int64)
        self._told = -1.0

    def called(self, agent: Any, now: float) -> None:
        before = self._last[agent]
        self._kind[agent] = 0 if np.isnan(before) else octave(now - before)
        self._last[agent] = now

    def changes(self, now: float) -> Estimates:
        if now > self._told:  # a tick began: who waits has waited one tick more
            self._told, rows = now, np.flatnonzero(~np.isnan(self._last))
        else:
            rows = np.flatnonzero(self._last == now)
        age = np.minimum(now - self._last[rows], LONGEST).astype(np.int64)
        at = now + self._distance[self._kind[rows], age]
        at[age == 0] += 1.0  # it cannot call again in this tick
        return Estimates(rows.tolist(), at, 0.5)


def octave(pause: float) -> int:
    return min(int(np.frexp(pause)[1]), 10)


def law(ticks: Ticks) -> Any:
    """For each kind and age, the ticks that waiting costs for each call that it brings, at best
    over all times at which to give up; whole ticks, and an agent of age ``a`` may call in this
    one."""
    counts = np.zeros((11, LONGEST + 2))
    last: dict[int, tuple[int, int]] = {}
    for now, agents in enumerate(ticks):
        for agent in agents:
            if agent in last:
                before, kind = last[agent]
                counts[kind, min(now - before, LONGEST)] += 1
                last[agent] = now, octave(now - before)
            else:
                last[agent] = now, 0
    counts[counts.sum(axis=1) < 50] = counts.sum(axis=0)
    distance = np.full((11, LONGEST + 1), 1e6)
    for kind, row in enumerate(counts):
        lasts = row[::-1].cumsum()[::-1]  # pauses of at least so long
        for age in range(LONGEST):
            calls = lasts[age] - lasts[age + 1 :]
            waits = lasts[age:-1].cumsum()
            found = calls > 0
            if found.any():
                distance[kind, age] = (waits[found] / calls[found]).min()
    distance[:, 0] = distance[:, 1]
    return distance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", help="this workload alone")
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES, help="of the agents")
    parser.add_argument("--replay", type=float, nargs="*", default=[0.25, 0.5],
                        help="residencies of the replay")  # fmt: skip


def run(options: argparse.Namespace) -> Report:
    report = Report("learned")
    cases = QUICK if options.quick else CASES
    cases = tuple(case for case in cases if options.only in (None, case.name))
    rows = [row for case in cases for row in cached(report, case, options)]
    report.tables.append(table("A cache of agents: misses", ["workload", "holds", "last use",
        "learned", "the law", "exact", "Belady", "× last use"], rows))  # fmt: skip
    rows = [row for case in cases for row in replayed(report, case, options)]
    report.tables.append(table("Replay", ["workload", "resident", "policy", "turns/s", "hits",
        "GB in", "waited"], rows))  # fmt: skip
    return report


def cached(report: Report, case: Case, options: argparse.Namespace) -> list[list[str]]:
    ticks = acts(case.name, case.agents, case.ticks, options.seed)
    calls = sum(map(len, ticks))
    known = law(acts(case.name, case.agents, 10 * case.ticks, options.seed + 1))
    rows = []
    for share in options.shares:
        size = int(share * case.agents)
        found = (
            misses(ticks, size),
            misses(ticks, size, [Learned(seed=options.seed)]),
            misses(ticks, size, [Law(case.agents, known)]),
            misses(ticks, size, hints=True),
            belady(ticks, size),
        )
        report.figures[f"{case.name}, {share:g}"] = [count / calls for count in found]
        report.verdict(f"{case.name}, {share:.0%}: learned over last use", found[1] / found[0],
                       most=1.02)  # fmt: skip
        rows.append([case.name, f"{share:.0%}", *(f"{count / calls:.3f}" for count in found),
                     f"{found[1] / found[0]:.3f}"])  # fmt: skip
    return rows


def replayed(report: Report, case: Case, options: argparse.Namespace) -> list[list[str]]:
    rows = []
    for residency in options.replay:
        found: dict[str, Outcome] = {}
        for arm, (policy, hints) in ARMS.items():
            sizes = Sizes(residency=residency, running=16)
            kind, knobs = workload(case.name, hints=hints, seed=options.seed, spread=0.5,
                                   **case.replayed)  # fmt: skip
            scenario = of_workload(kind, knobs, sizes)
            sources = [Learned(seed=options.seed)] if arm == "deadline, learned" else []
            one = found[arm] = play(scenario.machine(sizes), policy, scenario.ticks(),
                                    sources=sources, warmup=case.warmup)[0]  # fmt: skip
            rows.append([case.name, f"{residency:.0%}", arm, f"{one.turns_per_s:.2f}",
                         f"{one.hits:.1%}", f"{one.loaded_bytes / 1e9:.1f}",
                         f"{one.counters['demand_loads'] / one.turns:.1%}"])  # fmt: skip
        rates = {arm: one.turns_per_s for arm, one in found.items()}
        what = f"{case.name}, {residency:.0%} resident: turns/s, learned over"
        learned = rates["deadline, learned"]
        report.verdict(f"{what} lru-swap", learned / rates["lru-swap"], least=1.0)
        report.verdict(f"{what} exact", learned / rates["deadline, exact hints"], least=0.9)
    return rows
