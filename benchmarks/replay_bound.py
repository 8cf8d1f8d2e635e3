"""Each policy against Belady and the roof, in replay: who loads how much, and what it costs.

Virtual time on a stated machine; same seed, same table. Belady's loads are those of the order in
which the policy itself served; the roof is what the hardware model allows at most, and ``resident``
is beside it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.report import Report, table
from scalesim.replay.arms import Outcome, play
from scalesim.replay.knobs import Knobs
from scalesim.replay.roof import Roof, roof
from scalesim.replay.scenario import Sizes, of_workload
from scalesim.replay.workloads import workload

RIVALS = ("deadline", "lru-swap", "levels", "lru-recompute")
RESIDENCIES = (0.25, 0.5, 0.9, 1.0)


@dataclass(frozen=True)
class Case:
    """One table: a workload, its sizes, and the policies to hold against each other."""

    name: str
    workload: str
    knobs: dict[str, Any]
    running: int = 16
    residencies: tuple[float, ...] = RESIDENCIES
    policies: tuple[str, ...] = RIVALS
    warmup: int = 4
    judged: Literal["all", "rebuilding", "burst"] = "all"


# Texts vary in length: where all are equal, what begins together ends together, prefill stands
# between phases of decoding, and whatever delays a request breaks the lockstep and looks like gain.
SPREAD = 0.5
# Pools are kept large beside what runs at once: a running request's pages cannot be given away, and
# the bound knows that too.
CASES = (
    Case("W1 city", "w1", {"agents": 1200, "ticks": 16}),
    Case("W2 feed, drawn ahead", "w2", {"agents": 400, "ticks": 16, "max_context": 6144}),
    Case("W3 town", "w3", {"agents": 800, "ticks": 40}),
    Case("W4 rounds, 2 K prefixes", "w4", {"agents": 600, "ticks": 7}),
    Case("W5 turns", "w5", {"agents": 50, "ticks": 120}, residencies=(0.25, 0.5), warmup=51),
    Case("W4 rounds, 8 K prefixes, 20 out", "w4",
         {"agents": 300, "ticks": 5, "private": 8192, "output": 20}, residencies=(0.25, 0.5)),
    Case("W4 rounds, 2 K prefixes, 128 running", "w4",
         {"agents": 1500, "ticks": 4, "new": 64, "output": 40}, 128, (0.25,),
         ("deadline", "lru-swap", "lru-recompute"), 2, "rebuilding"),
    Case("W4 burst of 10 × the pool", "w4", {"agents": 200, "ticks": 4}, 4, (0.1,),
         ("deadline", "lru-swap"), 2, "burst"),
)  # fmt: skip
QUICK = (Case("W1 city", "w1", {"agents": 60, "ticks": 6}, 4, (0.5,), warmup=2),)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hardware", default="h100")
    parser.add_argument("--model", default="qwen2.5-7b")
    parser.add_argument("--only", help="run the cases whose name contains this")
    parser.add_argument("--residency", type=float, nargs="*", help="instead of each case's own")


def run(options: argparse.Namespace) -> Report:
    report = Report("replay-bound")
    for case in QUICK if options.quick else CASES:
        if options.only is None or options.only in case.name:
            study(report, case, options)
    return report


def study(report: Report, case: Case, options: argparse.Namespace) -> None:
    sizes = Sizes(options.hardware, options.model, running=case.running)
    kind, knobs = workload(case.workload, **{"spread": SPREAD, **case.knobs, "seed": options.seed})
    scenario = of_workload(kind, knobs, sizes)
    ticks = list(scenario.ticks())
    whole = scenario.machine(replace(sizes, residency=1.0))
    resident, _ = play(whole, "resident", ticks, warmup=case.warmup, witness=True)
    rows = [row("resident", 1.0, resident, roof(whole, ticks, case.warmup))]
    for residency in options.residency or case.residencies:
        machine = scenario.machine(replace(sizes, residency=residency))
        limits = roof(machine, ticks, case.warmup)
        outcomes = {
            name: play(machine, name, ticks, warmup=case.warmup, witness=True)[0]
            for name in case.policies
        }
        rows += [row(name, residency, one, limits) for name, one in outcomes.items()]
        report.figures[f"{case.name}, {residency:g}"] = figures(outcomes, limits, resident)
        what = f"{case.name}, {residency:.0%}"
        best = outcomes["deadline"]
        if case.judged == "rebuilding":
            share = best.turns_per_s / outcomes["lru-recompute"].turns_per_s
            report.verdict(f"{what}: × lru-recompute", share, least=4.0)
        elif case.judged == "burst":  # with everything resident, every order is the best one
            makespan = best.tick_s[0] / resident.tick_s[0]
            report.verdict(f"{what}: makespan over all-resident's", makespan, most=1.05)
        else:
            judge(report, what, outcomes, limits, resident)
    report.tables.append(table(f"{case.name}: {described(knobs, case)}", COLUMNS, rows))


COLUMNS = [
    "policy", "resident", "turns/s", "of roof", "× Belady", "GB in", "GB rebuilt", "hits",
    "demand", "s/tick p50", "p95", "TTFT p50", "p95",
]  # fmt: skip


def row(name: str, residency: float, one: Outcome, limits: Roof) -> list[str]:
    over = one.over_belady
    roof = limits.resident_turns_per_s if name == "resident" else limits.turns_per_s
    return [
        name,
        f"{residency:.0%}",
        f"{one.turns_per_s:.2f}",
        f"{one.turns_per_s / roof:.3f}",
        "-" if over is None else f"{over:.2f}",
        f"{one.loaded_bytes / 1e9:.1f}",
        f"{one.rebuilt_bytes / 1e9:.1f}",
        f"{one.hits:.1%}",
        f"{one.waited:.1%}",
        *(f"{seconds:.2f}" for seconds in (*one.tick_s, *one.first_token_s)),
    ]


def judge(report: Report, what: str, outcomes: dict[str, Outcome], limits: Roof,
          resident: Outcome) -> None:  # fmt: skip
    best = outcomes["deadline"]
    if best.over_belady is not None:
        report.verdict(f"{what}: bytes over Belady's", best.over_belady, most=1.10)
    reached = best.turns_per_s / min(resident.turns_per_s, limits.turns_per_s)
    report.verdict(f"{what}: of resident, or of the roof if lower", reached, least=0.95)
    report.verdict(f"{what}: demand loads a turn", best.waited, most=0.01)
    other = max(one.turns_per_s for name, one in outcomes.items() if name != "deadline")
    report.verdict(f"{what}: of the best other policy", best.turns_per_s / other, least=0.99)


def figures(outcomes: dict[str, Outcome], limits: Roof, resident: Outcome) -> dict[str, Any]:
    return {
        "roof": limits.turns_per_s,
        "roof_all_resident": limits.resident_turns_per_s,
        "resident": resident.turns_per_s,
        **{name: {"turns_per_s": one.turns_per_s, "gb_in": one.loaded_bytes / 1e9,
                  "gb_rebuilt": one.rebuilt_bytes / 1e9, "gb_least": one.least_bytes / 1e9,
                  "demand": one.waited} for name, one in outcomes.items()},
    }  # fmt: skip


def described(knobs: Knobs, case: Case) -> str:
    return (
        f"{knobs.agents} agents, {knobs.shared} + {knobs.private} + {knobs.new} in, "
        f"{knobs.output} out, {case.running} running"
    )
