"""What the flight recorder and the accounts that are always on cost: turns with and without them.

Two engines without a model (the stub of ``overhead``), one that records page events and compares
counts after every step, one that does neither, take the same turns in alternation, in processor
time: the two of a pair do exactly the same, and are so short that most pairs see no disturbance.
The callers' share is in it. An engine with a model spends most of a step in the model; here the
engine itself is all there is, so the share is an upper bound.

The target is held against the upper end of the interval of the median, not against the median.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import overhead
from benchmarks.report import Report, table

QUICK: dict[str, Any] = {"agents": 200, "running": 16, "turns": 4, "settle": 40, "prefix": 64,
                         "pool": 0.5, "rounds": 20}  # fmt: skip
ARMS = {"recorded and checked": True, "neither": False}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    overhead.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=1_000, help="times that the two alternate")
    parser.set_defaults(agents=1_000, turns=10, settle=1_000, pool=0.1, running=64)


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
    ratio, (low, high) = statistics.median(ratios), median_interval(ratios)
    recorded = arms["recorded and checked"].memory.page_log
    assert recorded is not None and arms["neither"].memory.page_log is None
    report = Report("guard")
    rows = [[name, f"{statistics.median(each) * 1e6:.1f}"] for name, each in seconds.items()]
    report.tables = [table("Processor time of a turn, without the model", ["arm", "µs"], rows)]
    report.figures = {"seconds": seconds, "ratios": ratios, "ratio": ratio,
                      "interval": [low, high], "events": len(recorded)}  # fmt: skip
    report.notes = [
        f"with / without, {len(ratios)} pairs: {ratio:.4f} (median), 95 % interval {low:.4f} to "
        f"{high:.4f}; all of it, outliers and all: {sum(on) / sum(off):.4f}",
        f"of single pairs half lie between {ratios[len(ratios) // 4]:.3f} and "
        f"{ratios[-1 - len(ratios) // 4]:.3f}, all between {ratios[0]:.3f} and {ratios[-1]:.3f}",
    ]
    upper = 100 * (high - 1)
    report.verdict("what recording and checking add, upper end", upper, most=1, unit=" %")
    return report


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Two of ``values``, sorted, that hold the median between them with ``confidence``, whatever
    the distribution: how many lie below it is binomial with 1/2 (David and Nagaraja, Order
    Statistics, 7.1). Infinite where there are too few."""
    count, below, outside = len(values), 0, 0.0
    while (outside := outside + math.comb(count, below) / 2**count) <= (1 - confidence) / 2:
        below += 1
    return (values[below - 1], values[count - below]) if below else (-math.inf, math.inf)
