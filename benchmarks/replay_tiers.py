"""The disk below the host, in replay: each policy on the same three tiers, beside the roof.

Virtual time on a stated machine; same seed, same table. The host and the device hold a small share
of the agents' state, the disk all of it. Bytes are judged against Belady's on the order in which
the policy itself served, with a cache as large as device and host. Ticks are few, so that agents
can be many; the opening, in which everybody's prefix is computed, does not count.

Two more cases, of few agents, have a disk that reads a prefix more slowly than it is computed, so
that it binds whoever waits for it. There, the gain over ``lru-swap`` is held against what its bytes
allow: they over Belady's on its own order, and no more than the roof leaves above it.

``--plots FOLDER`` also draws curves, with fewer agents (needs matplotlib, which nothing else does).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.report import Report, save_svg, table
from scalesim.replay.arms import Outcome, play
from scalesim.replay.hardware import disk_rate
from scalesim.replay.knobs import HintMode
from scalesim.replay.roof import Roof, roof
from scalesim.replay.scenario import Scenario, Sizes, of_workload
from scalesim.replay.workloads import workload

Arm = tuple[str, HintMode]  # policy, hints
ARMS: tuple[Arm, ...] = (("deadline", "exact"), ("lru-swap", "exact"), ("deadline", "none"))
CURVE_ARMS: tuple[Arm, ...] = (*ARMS[:2], ("lru-recompute", "exact"))
PREFIX = {"private": 2048, "spread": 0.5}


@dataclass(frozen=True)
class TierCase:
    """A workload on pools of these shares of its state, above a disk of this rate."""

    name: str
    workload: str
    ticks: int
    warmup: int = 1  # ticks that do not count: the opening is the first
    disk: str = "nvme"
    device: float = 0.02
    host: float = 0.08

    def sizes(self, running: int) -> Sizes:
        rate = disk_rate(self.disk)
        return Sizes(residency=self.device, host=self.host, running=running, disk=rate)


CASES = (TierCase("W1 city", "w1", 3, warmup=2), TierCase("W4 rounds", "w4", 1))
FEW, FEW_RUNNING = 300, 4
SLOW = (  # a warm-up of six ticks: the disk takes 350 s to write all state once
    TierCase("slow disk, W1", "w1", 14, warmup=6, disk="0.1GB"),
    TierCase("slow disk, W4", "w4", 1, disk="0.25GB"),
)
CURVE = CASES[1]
CURVES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "disk rate": ("disk", ("0.5GB", "1GB", "2GB", "5GB")),
    "host share": ("host", (0.02, 0.08, 0.3, 0.6)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--agents", type=int, default=20_000)
    parser.add_argument("--running", type=int, default=32, help="requests that run at once")
    parser.add_argument("--only", help="run the cases and curves whose name contains this")
    parser.add_argument("--plots", type=Path, help="write one SVG a curve into this folder")


def run(options: argparse.Namespace) -> Report:
    report = Report("replay-tiers")
    for cases, agents, running in (
        (CASES, options.agents, options.running),
        (SLOW, FEW, FEW_RUNNING),
    ):
        for case in cases[1:] if options.quick else cases:
            if options.only is None or options.only in case.name:
                of_size = (24, 1) if options.quick else (agents, running)
                study(report, case, *of_size, options.seed)
    for name, (field, values) in CURVES.items() if options.plots is not None else ():
        if options.only is None or options.only in name:
            some = values[::3] if options.quick else values
            points = {shown(value): replace(CURVE, **{field: value}) for value in some}
            few = (8, 1) if options.quick else (FEW, FEW_RUNNING)
            curve(report, options.plots, name, points, *few, options.seed)
    return report


@dataclass(frozen=True)
class Found:
    """The arms of a case, by policy and hints, and the roof over all of them."""

    arms: dict[Arm, Outcome]
    roof: Roof

    def of_roof(self, one: Outcome) -> float:
        return one.turns_per_s / self.roof.turns_per_s


def played(
    case: TierCase,
    policies: Sequence[Arm],
    agents: int,
    running: int,
    seed: int,
    *,
    witness: bool = True,
) -> Found:
    sizes = case.sizes(running)
    arms: dict[Arm, Outcome] = {}
    limits: Roof | None = None
    for policy, hints in policies:
        scenario = scenario_of(case, sizes, agents, hints, seed)
        machine, ticks = scenario.machine(sizes), list(scenario.ticks())
        limits = limits or roof(machine, ticks, case.warmup)
        arms[policy, hints], _ = play(machine, policy, ticks, warmup=case.warmup, witness=witness)
    assert limits is not None
    return Found(arms, limits)


def scenario_of(case: TierCase, sizes: Sizes, agents: int, hints: HintMode, seed: int) -> Scenario:
    settings: dict[str, Any] = {**PREFIX, "agents": agents, "ticks": case.ticks, "seed": seed}
    kind, knobs = workload(case.workload, **settings)
    return of_workload(kind, replace(knobs, hints=hints), sizes)


# -- the cases ----------------------------------------------------------------------------------


def study(report: Report, case: TierCase, agents: int, running: int, seed: int) -> None:
    found = played(case, ARMS, agents, running, seed)
    what = f"{case.name}: {agents} agents, 2 K prefixes, disk {case.disk}"
    rows = [row(name_of(*arm), one, found) for arm, one in found.arms.items()]
    report.tables.append(table(f"{what}, host {case.host:.0%}, device {case.device:.0%}",
                               COLUMNS, rows))  # fmt: skip
    report.figures[what] = {name_of(*arm): numbers(one, found) for arm, one in found.arms.items()}
    judge(report, case.name, found, binds=case in SLOW)


def name_of(policy: str, hints: str) -> str:
    return policy if hints == "exact" else f"{policy}, no hints"


COLUMNS = [
    "policy", "turns/s", "of roof", "GB from disk", "GB rebuilt", "× Belady of disk", "waits",
    "TTFT p50", "p95", "from the slot p50", "p95",
]  # fmt: skip


def row(name: str, one: Outcome, found: Found) -> list[str]:
    over = one.over_belady_disk
    return [
        name,
        f"{one.turns_per_s:.2f}",
        f"{found.of_roof(one):.3f}",
        f"{one.disk_bytes / 1e9:.1f}",
        f"{one.rebuilt_bytes / 1e9:.1f}",
        "-" if over is None else f"{over:.2f}",
        f"{one.waited:.1%}",
        *(f"{seconds:.1f}" for seconds in one.first_token_s),
        *(f"{seconds:.3f}" for seconds in one.from_slot_s),
    ]


def numbers(one: Outcome, found: Found) -> dict[str, Any]:
    return {
        "turns_per_s": one.turns_per_s,
        "of_roof": found.of_roof(one),
        "disk_gb": one.disk_bytes / 1e9,
        "rebuilt_gb": one.rebuilt_bytes / 1e9,
        "over_belady_disk": one.over_belady_disk,
        "waits": one.waited,
        "ttft_s": one.first_token_s,
        "from_slot_s": one.from_slot_s,
    }


def judge(report: Report, what: str, found: Found, *, binds: bool) -> None:
    """``binds``: whether ``lru-swap`` waits for the disk, which the roof cannot say: it may compute
    what would be read."""
    best, swap = found.arms["deadline", "exact"], found.arms["lru-swap", "exact"]
    report.verdict(f"{what}: of the roof", found.of_roof(best), least=0.9)
    if binds and swap.over_belady_disk is not None:
        fewer = min(swap.over_belady_disk, 1.0 / found.of_roof(swap))
        gain = best.turns_per_s / swap.turns_per_s
        report.verdict(f"{what}: turns/s over lru-swap ({gain:.2f}), of what its bytes allow "
                       f"({fewer:.2f})", gain / fewer, least=0.95)  # fmt: skip
    elif not binds:
        report.verdict(f"{what}: calls that wait", best.waited, most=0.02)
        for since, mine, theirs in (
            ("call", best.first_token_s[1], swap.first_token_s[1]),
            ("slot", best.from_slot_s[1], swap.from_slot_s[1]),
        ):
            report.verdict(f"{what}: first token after the {since}, p95, of lru-swap's",
                           mine / theirs, most=0.5)  # fmt: skip
    blind = found.arms["deadline", "none"].turns_per_s / swap.turns_per_s
    report.verdict(f"{what}: without hints, of lru-swap", blind, least=0.97)


# -- the curves ---------------------------------------------------------------------------------


def shown(value: str | float) -> str:
    """A share of the host, or a rate of the disk, at its axis."""
    return f"{value}/s" if isinstance(value, str) else f"{value:.0%}"


MEASURES: dict[str, Callable[[Outcome], float]] = {
    "turns/s": lambda one: one.turns_per_s,
    "slot to first token, p95, s": lambda one: one.from_slot_s[1],
}


def curve(
    report: Report,
    folder: Path,
    name: str,
    points: dict[str, TierCase],
    agents: int,
    running: int,
    seed: int,
) -> None:
    found = {
        at: played(case, CURVE_ARMS, agents, running, seed, witness=False)
        for at, case in points.items()
    }
    heads = [f"{name_of(*arm)} {measure}" for measure in MEASURES for arm in CURVE_ARMS]
    rows = [
        [at, f"{one.roof.turns_per_s:.2f}",
         *(f"{get(one.arms[arm]):.2f}" for get in MEASURES.values() for arm in CURVE_ARMS)]
        for at, one in found.items()
    ]  # fmt: skip
    report.tables.append(table(f"{name}: {agents} agents", [name, "roof turns/s", *heads], rows))
    report.figures[name] = {
        at: {name_of(*arm): numbers(outcome, one) for arm, outcome in one.arms.items()}
        for at, one in found.items()
    }

    def draw(*axes: Any) -> None:
        for axis, (what, get) in zip(axes, MEASURES.items(), strict=True):
            for arm in CURVE_ARMS:
                values = [get(one.arms[arm]) for one in found.values()]
                axis.plot(list(found), values, "o-", label=name_of(*arm))
            axis.set(xlabel=name, ylabel=what)
        roofs = [one.roof.turns_per_s for one in found.values()]
        axes[0].plot(list(found), roofs, "k:", label="roof")
        axes[0].legend(fontsize=8)
        for axis in axes:
            axis.set_ylim(0, None)

    save_svg(folder / f"replay-tiers-{name.replace(' ', '-')}.svg", (9, 3.2), draw, len(MEASURES))
