"""What the flight recorder and the accounts that are always on cost: turns with and without them.

Two engines without a model (the stub of ``overhead``), one that records page events and compares
counts after every step, one that does neither, take the same turns in alternation, in processor
time: the two of a pair do exactly the same. The callers' share is in it. An engine with a model
spends most of a step in the model; here the engine itself is all there is, so the share is an upper
bound.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from typing import Any

from benchmarks import overhead
from benchmarks.report import Report, table

QUICK: dict[str, Any] = {"agents": 200, "running": 16, "turns": 10, "settle": 40, "prefix": 64,
                         "pool": 0.5, "rounds": 3}  # fmt: skip
ARMS = {"recorded and checked": True, "neither": False}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    overhead.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=60, help="times that the two alternate")
    parser.set_defaults(agents=1_000, turns=100, settle=1_000, pool=0.1, running=64)


def run(options: argparse.Namespace) -> Report:
    if options.quick:
        vars(options).update(QUICK)
    total, options.turns = options.turns, options.turns * options.rounds  # sizes the histories
    arms = {name: overhead.Simulation(options, "deadline", hints=True, guarded=guarded)
            for name, guarded in ARMS.items()}  # fmt: skip
    for simulation in arms.values():
        simulation.fill()
        simulation.play(options.settle)
        simulation.clock = simulation.watch.clock = lambda: 0.0  # reading clocks is not measured
    gc.collect()
    gc.freeze()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for round_ in range(options.rounds):
        for name in names if round_ % 2 else reversed(names):  # who goes first alternates too
            start_s = time.thread_time()
            window = arms[name].play(total)
            seconds[name].append((time.thread_time() - start_s) / window.turns)
    gc.unfreeze()
    return report_of(seconds, arms)


def report_of(seconds: dict[str, list[float]], arms: dict[str, overhead.Simulation]) -> Report:
    on, off = seconds.values()
    ratios = sorted(mine / theirs for mine, theirs in zip(on, off, strict=True))
    ratio = statistics.median(ratios)
    recorded = arms["recorded and checked"].memory.flight
    assert recorded is not None and arms["neither"].memory.flight is None
    report = Report("guard")
    rows = [[name, f"{statistics.median(each) * 1e6:.1f}"] for name, each in seconds.items()]
    report.tables = [table("Processor time of a turn, without the model", ["arm", "µs"], rows)]
    report.figures = {"seconds": seconds, "ratios": ratios, "ratio": ratio, "events": len(recorded)}
    report.notes = [
        f"with / without, a pair a round: {ratio:.4f} (median), {ratios[0]:.4f} to {ratios[-1]:.4f}"
    ]
    report.verdict("what recording and checking add", 100 * (ratio - 1), most=1, unit=" %")
    return report
