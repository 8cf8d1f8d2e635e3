"""The disk below the host, in replay: each policy on the same three tiers, beside the roof.

Virtual time on a stated machine; same seed, same table. The host and the device hold a small share
of the agents' state, the disk all of it. Bytes are judged against Belady's on the order in which
the policy itself served, with a cache as large as device and host.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.report import Report, table
from scalesim.replay.arms import Outcome, play
from scalesim.replay.hardware import disk_rate
from scalesim.replay.roof import Roof, roof
from scalesim.replay.scenario import Scenario, Sizes, of_workload
from scalesim.replay.workloads import workload

POLICIES = ("deadline", "lru-swap", "lru-recompute")
HINTS = ("exact", "none")
PREFIX = {"private": 2048, "spread": 0.5}


@dataclass(frozen=True)
class TierCase:
    """One table: a workload on pools of these shares of its state, above a disk of this rate."""

    name: str
    workload: str
    ticks: int
    disk: str = "nvme"
    device: float = 0.02
    host: float = 0.08
    warmup: int = 2

    def sizes(self, running: int) -> Sizes:
        rate = disk_rate(self.disk)
        return Sizes(residency=self.device, host=self.host, running=running, disk=rate)


CASES = (
    TierCase("W1 city", "w1", 12, warmup=6),
    TierCase("W4 rounds", "w4", 3),
    TierCase("W1 city, SATA", "w1", 12, "sata", warmup=6),
    TierCase("W1 city, 1 GB/s", "w1", 12, "1GB", warmup=6),
    TierCase("W1 city, 20 GB/s", "w1", 12, "20GB", warmup=6),
    TierCase("W1 city, 30 % on the host", "w1", 12, host=0.3, warmup=6),
    TierCase("W1 city, 60 % on the host", "w1", 12, host=0.6, warmup=6),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--agents", type=int, default=20_000)
    parser.add_argument("--running", type=int, default=32, help="requests that run at once")
    parser.add_argument("--only", help="run the cases whose name contains this")


def run(options: argparse.Namespace) -> Report:
    report = Report("replay-tiers")
    for case in CASES[1:2] if options.quick else CASES:
        if options.only is None or options.only in case.name:
            agents, running = (24, 1) if options.quick else (options.agents, options.running)
            study(report, case, agents, running, options.seed)
    return report


def study(report: Report, case: TierCase, agents: int, running: int, seed: int) -> None:
    rows = []
    found: dict[str, dict[str, Outcome]] = {}
    limits: Roof | None = None
    sizes = case.sizes(running)
    for hints in HINTS:
        scenario = scenario_of(case, sizes, agents, hints, seed)
        machine = scenario.machine(sizes)
        ticks = list(scenario.ticks())
        limits = limits or roof(machine, ticks, case.warmup)
        for policy in POLICIES if hints == "exact" else POLICIES[:1]:
            one, _ = play(machine, policy, ticks, warmup=case.warmup, witness=True)
            found.setdefault(hints, {})[policy] = one
            rows.append(row(policy if hints == "exact" else f"{policy}, no hints", one, limits))
    assert limits is not None
    what = f"{case.name}: {agents} agents, 2 K prefixes, disk {case.disk}"
    report.tables.append(table(f"{what}, host {case.host:.0%}, device {case.device:.0%}",
                               COLUMNS, rows))  # fmt: skip
    report.figures[what] = {
        hints: {policy: numbers(one, limits) for policy, one in arms.items()}
        for hints, arms in found.items()
    }
    judge(report, case.name, found, limits)


def scenario_of(case: TierCase, sizes: Sizes, agents: int, hints: str, seed: int) -> Scenario:
    settings: dict[str, Any] = {**PREFIX, "agents": agents, "ticks": case.ticks, "seed": seed}
    kind, knobs = workload(case.workload, **settings)
    return of_workload(kind, replace(knobs, hints=hints), sizes)


COLUMNS = [
    "policy", "turns/s", "of roof", "GB from disk", "GB rebuilt", "× Belady of disk", "waits",
    "TTFT p50", "p95",
]  # fmt: skip


def row(name: str, one: Outcome, limits: Roof) -> list[str]:
    over = one.over_belady_disk
    return [
        name,
        f"{one.turns_per_s:.2f}",
        f"{one.turns_per_s / limits.turns_per_s:.3f}",
        f"{one.disk_bytes / 1e9:.1f}",
        f"{one.rebuilt_bytes / 1e9:.1f}",
        "-" if over is None else f"{over:.2f}",
        f"{one.waited:.1%}",
        *(f"{seconds:.2f}" for seconds in one.first_token_s),
    ]


def numbers(one: Outcome, limits: Roof) -> dict[str, Any]:
    return {
        "turns_per_s": one.turns_per_s,
        "of_roof": one.turns_per_s / limits.turns_per_s,
        "disk_gb": one.disk_bytes / 1e9,
        "rebuilt_gb": one.rebuilt_bytes / 1e9,
        "over_belady_disk": one.over_belady_disk,
        "waits": one.waited,
        "ttft_s": one.first_token_s,
    }


def judge(report: Report, what: str, found: dict[str, dict[str, Outcome]], limits: Roof) -> None:
    best, swap = found["exact"]["deadline"], found["exact"]["lru-swap"]
    report.verdict(f"{what}: of the roof", best.turns_per_s / limits.turns_per_s, least=0.9)
    gain = best.turns_per_s / swap.turns_per_s
    if swap.over_belady_disk is not None:
        fewer = min(swap.over_belady_disk, limits.turns_per_s / swap.turns_per_s)
        report.verdict(f"{what}: gain over lru-swap, of what its bytes allow", gain / fewer,
                       least=0.95)  # fmt: skip
    blind = found["none"]["deadline"].turns_per_s / swap.turns_per_s
    report.verdict(f"{what}: without hints, of lru-swap", blind, least=0.97)
