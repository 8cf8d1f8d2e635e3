"""What hint quality, residency, agents and the link's rate do to each policy, in replay.

``--plots FOLDER`` also draws the curves (needs matplotlib, which nothing else does).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.report import Report, save_svg, table
from scalesim.replay.arms import Outcome, play
from scalesim.replay.scenario import Sizes, of_workload
from scalesim.replay.workloads import workload

POLICIES = ("deadline", "lru-swap", "levels", "lru-recompute")
SIZES = Sizes(running=16)
BASE: dict[str, Any] = {
    "agents": 400, "ticks": 8, "private": 2048, "new": 128, "output": 32, "spread": 0.5,
}  # fmt: skip
QUICK: dict[str, Any] = {"agents": 40, "ticks": 4, "private": 256, "new": 64, "output": 16}
WARMUP = 3
Point = tuple[dict[str, Any], dict[str, Any]]  # changes of the workload, changes of the sizes
CURVES: dict[str, tuple[str, dict[Any, Point]]] = {
    "share of wrong hints": (
        "w1", {wrong: ({"wrong": wrong}, {}) for wrong in (0.0, 0.1, 0.25, 0.5, 1.0)},
    ),
    "hint mode": (
        "w1",
        {mode: ({"hints": mode}, {}) for mode in ("exact", "interrupted", "stale", "probability",
                                                   "none", "random", "inverted")},
    ),
    "residency": (
        "w1", {share: ({}, {"residency": share}) for share in (0.05, 0.1, 0.25, 0.5, 1.0)},
    ),
    # of the most, one tick after the warm-up: 22 000 turns, and all of their texts before it
    "agents": (
        "w1", {count: ({"agents": count, "ticks": ticks}, {})
               for count, ticks in ((100, 8), (1_000, 8), (10_000, 8), (100_000, 4))},
    ),
    "link rate": (
        "w1", {share: ({}, {"link_share": share}) for share in (0.01, 0.03, 0.1, 0.3, 1.0)},
    ),
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", help="the curve of this name")
    parser.add_argument("--plots", type=Path, help="write one SVG a curve into this folder")


def run(options: argparse.Namespace) -> Report:
    report = Report("replay-curves")
    base = QUICK if options.quick else BASE
    for name, (kind, points) in CURVES.items():
        if options.only not in (None, name):
            continue
        found: dict[Any, dict[str, Outcome]] = {}
        for at, (changes, sizing) in points.items():
            if not (options.quick and changes.get("agents", 0) > 400):
                settings = {**base, **changes, "seed": options.seed}
                found[at] = point(kind, settings, replace(SIZES, **sizing))
        report.tables.append(table(name, ["", *heads()], rows(found)))
        report.figures[name] = {str(at): numbers(one) for at, one in found.items()}
        judge(report, name, found)
        if options.plots is not None:
            plot(options.plots, name, found)
    return report


def point(kind_name: str, settings: dict[str, Any], sizes: Sizes) -> dict[str, Outcome]:
    kind, knobs = workload(kind_name, **settings)
    scenario = of_workload(kind, knobs, sizes)
    ticks, machine = list(scenario.ticks()), scenario.machine(sizes)
    return {name: play(machine, name, ticks, warmup=WARMUP)[0] for name in POLICIES}


MEASURES: dict[str, Callable[[Outcome], float]] = {
    "turns/s": lambda one: one.turns_per_s,
    "GB in": lambda one: one.loaded_bytes / 1e9,
}


def heads() -> list[str]:
    return [f"{policy} {measure}" for measure in MEASURES for policy in POLICIES]


def rows(found: dict[Any, dict[str, Outcome]]) -> list[list[str]]:
    return [
        [str(at), *(f"{get(one[policy]):.2f}" for get in MEASURES.values() for policy in POLICIES)]
        for at, one in found.items()
    ]


def numbers(one: dict[str, Outcome]) -> dict[str, dict[str, float]]:
    return {name: {what: get(each) for what, get in MEASURES.items()} for name, each in one.items()}


def judge(report: Report, name: str, found: dict[Any, dict[str, Outcome]]) -> None:
    for at in ("inverted", "random"):
        if at in found:
            arms = found[at]
            share = arms["deadline"].turns_per_s / arms["lru-swap"].turns_per_s
            report.verdict(f"{at} hints: of lru-swap", share, least=0.9)


def plot(folder: Path, name: str, found: dict[Any, dict[str, Outcome]]) -> None:
    labels = [str(at) for at in found]

    def draw(*axes: Any) -> None:
        for axis, (what, get) in zip(axes, MEASURES.items(), strict=True):
            for policy in POLICIES:
                axis.plot(labels, [get(one[policy]) for one in found.values()], "o-", label=policy)
            axis.set(xlabel=name, ylabel=what, ylim=(0, None))
            axis.tick_params(axis="x", labelrotation=30 if name == "hint mode" else 0)
        axes[0].legend(fontsize=8)

    save_svg(folder / f"replay-{name.replace(' ', '-')}.svg", (9, 3.2), draw, len(MEASURES))
