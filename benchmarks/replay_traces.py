"""Every policy on traces of real systems, in replay, beside the synthetic workloads.

Give paths of traces in any format that ``scalesim replay`` reads; none comes with the project. Of
each, the first ticks with about ``--calls`` calls. Virtual time: same traces, same table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.report import Report, table
from scalesim.errors import ConfigError
from scalesim.replay import formats
from scalesim.replay.arms import Outcome, play
from scalesim.replay.roof import Roof, roof
from scalesim.replay.scenario import Scenario, Sizes, TraceHints, of_trace, of_workload
from scalesim.replay.workloads import workload
from scalesim.trace.trace import TraceTick

# policy, and what it is told; those that take no hints are the same whatever is said
ARMS: tuple[tuple[str, TraceHints], ...] = (
    ("resident", "none"),
    ("deadline", "exact"),
    ("deadline", "learned"),
    ("deadline", "none"),
    ("levels", "exact"),
    ("lru-swap", "none"),
    ("lru-recompute", "none"),
)
WORKLOADS: dict[str, dict[str, Any]] = {
    "w1": {"agents": 120, "ticks": 16},
    "w2": {"agents": 80, "ticks": 16},
    "w3": {"agents": 80, "ticks": 60},
    "w4": {"agents": 60, "ticks": 5},
    "w5": {"agents": 40, "ticks": 40},
}
WARMUP = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("traces", nargs="*", type=Path, metavar="TRACE")
    parser.add_argument("--calls", type=int, default=150, help="of each trace, about so many")
    parser.add_argument("--workloads", nargs="*", default=list(WORKLOADS), choices=WORKLOADS,
                        metavar="NAME", help="to put beside the traces; none if empty")  # fmt: skip
    parser.add_argument("--tick", type=float, default=10.0, help="seconds that make a tick")
    parser.add_argument("--hardware", default="h100")
    parser.add_argument("--model", default="qwen2.5-7b")
    parser.add_argument("--residency", type=float, default=0.25)
    parser.add_argument("--running", type=int, default=16, help="at most; see the table")


def run(options: argparse.Namespace) -> Report:
    report = Report("replay-traces")
    sizes = Sizes(options.hardware, options.model, options.residency, running=options.running)
    rows = []
    for name, ticks in cases(options):
        rows += study(report, name, ticks, sizes)
    about = f"{options.model} on {options.hardware}, {options.residency:.0%} resident, "
    report.tables.append(table(f"{about}as many running as in the table", COLUMNS, rows))
    report.notes.append("a third of the agents that the pool holds run at once, at most --running")
    return report


def cases(options: argparse.Namespace) -> list[tuple[str, list[TraceTick]]]:
    """The beginnings of the traces, and the workloads as traces: (name, ticks)."""
    found = []
    for path in options.traces:
        if not path.is_file():
            raise ConfigError(f"{path} is no file; give paths of traces")
        form = formats.detect(path)
        ticks = formats.read(path, form)
        if form.in_seconds:
            ticks = formats.gathered(ticks, options.tick)
        found.append((path.stem, first(ticks, options.calls)))
    for name in options.workloads:
        knobs = {**WORKLOADS[name], **({"agents": 20, "ticks": 4} if options.quick else {})}
        kind, own = workload(name, seed=options.seed, **knobs)
        scenario = of_workload(kind, own, Sizes(options.hardware, options.model))
        found.append((name, list(scenario.ticks())))
    return found[:2] if options.quick else found


def first(ticks: Sequence[TraceTick], calls: int) -> list[TraceTick]:
    """The first ticks until there are ``calls``."""
    found: list[TraceTick] = []
    for tick in ticks:
        found.append(tick)
        calls -= len(tick.calls)
        if calls <= 0:
            break
    return found


COLUMNS = [
    "trace", "calls", "agents", "running", "policy, hints", "turns/s", "of roof", "hits", "waits",
    "GB loaded", "GB rebuilt", "× Belady",
]  # fmt: skip


def study(report: Report, name: str, ticks: list[TraceTick], sizes: Sizes) -> list[list[str]]:
    turns = [turn for tick in ticks for turn in tick.calls]
    agents = {turn.agent for turn in turns} - {None}
    running = min(sizes.running, max(1, int(len(agents) * sizes.residency / 3)))
    sizes = replace(sizes, running=running if agents else sizes.running)
    rows, figures = [], {}
    for policy, hints in ARMS:
        scenario = of_trace(name, ticks, sizes, hints)
        one, limit = arm(scenario, policy, sizes)
        most = limit.resident_turns_per_s if policy == "resident" else limit.turns_per_s
        what = policy if hints == "none" and policy != "deadline" else f"{policy}, {hints}"
        over = one.over_belady
        start = [name, str(len(turns)), str(len(agents)), str(sizes.running)]
        start = ["" for _ in start] if rows else start
        print(f"{name}: {what}", file=sys.stderr, flush=True)
        rows.append([
            *start, what, f"{one.turns_per_s:.2f}", f"{one.turns_per_s / most:.3f}",
            f"{one.hits:.1%}", f"{one.waited:.1%}", f"{one.loaded_bytes / 1e9:.1f}",
            f"{one.rebuilt_bytes / 1e9:.1f}", "-" if over is None else f"{over:.2f}",
        ])  # fmt: skip
        figures[what] = {"turns_per_s": one.turns_per_s, "roof": most, "over_belady": over}
    report.figures[name] = {"calls": len(turns), "agents": len(agents), **figures}
    return rows


def arm(scenario: Scenario, policy: str, sizes: Sizes) -> tuple[Outcome, Roof]:
    machine = scenario.machine(sizes)
    ticks = list(scenario.ticks())
    one, _ = play(machine, policy, ticks, sources=scenario.sources(), warmup=WARMUP, witness=True)
    return one, roof(machine, ticks, WARMUP)
