"""Several models in one pool, in replay: each policy on six models at device memory for two.

Virtual time on a stated machine; same seed, same table. In a tick all agents of one model call; the
models come in turn (cyclic), or some more often than others (skewed). ``lru-recompute`` has no host
pool: what it lacks is loaded again from its source when it is asked for. Sources are in memory, so
that this is as fast as the link.
"""

from __future__ import annotations

import argparse
import math
import random
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from benchmarks.report import Report, table
from scalesim.replay.arms import Outcome, play
from scalesim.replay.knobs import Knobs
from scalesim.replay.machine import Machine
from scalesim.replay.roof import Roof, roof
from scalesim.replay.scenario import Scenario, Sizes, of_workload
from scalesim.replay.schedules import ORDER, Schedule
from scalesim.replay.workloads import Kind

POLICIES = ("resident", "deadline", "lru-swap", "lru-recompute")
NUM_MODELS, IN_MEMORY = 6, 2
LEAST_OF_ROOF = 0.9
EQUAL = 0.01  # rates that differ by less are called equal


@dataclass(frozen=True)
class ModelTurns(Schedule):
    """All agents of one model act in a tick: agent ``a`` is one of model ``a % NUM_MODELS``."""

    num_agents: int
    ticks: int
    seed: int
    skewed: bool

    @cached_property
    def turns(self) -> list[int]:
        """The model of each tick, from tick 1 on."""
        rng = random.Random(self.seed)
        if not self.skewed:
            return [tick % NUM_MODELS for tick in range(self.ticks)]
        return [min(int(rng.expovariate(0.7)), NUM_MODELS - 1) for _ in range(self.ticks)]

    def mean_gap(self, agent: int) -> float:
        return self.ticks / max(1, self.turns.count(agent % NUM_MODELS))

    def after(self, agent: int, now: float) -> float:
        model = agent % NUM_MODELS
        own = [tick for tick, turn in enumerate(self.turns, 1) if turn == model]
        index = bisect_right(own, int(now))
        at = own[index] if index < len(own) else 2 * self.ticks
        return at + ORDER * agent / self.num_agents


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--agents", type=int, default=8, help="of each model")
    parser.add_argument("--ticks", type=int, default=48)
    parser.add_argument("--hardware", nargs="+", default=["h100", "rtx4090"])
    parser.add_argument("--model", default="qwen2.5-0.5b", help="as of scalesim replay")
    parser.add_argument(
        "--output", type=int, nargs="+", default=[8, 16, 128], help="tokens of an answer"
    )


def run(options: argparse.Namespace) -> Report:
    report = Report("replay-models")
    if options.quick:
        options.agents, options.ticks, options.output = 2, 8, [8]
    for hardware in options.hardware[:1] if options.quick else options.hardware:
        for output in options.output:
            for order in ("cyclic", "skewed"):
                study(report, options, hardware, order, output)
    return report


def study(
    report: Report, options: argparse.Namespace, hardware: str, order: str, output: int
) -> None:
    sizes = Sizes(hardware, options.model, running=options.agents, models=NUM_MODELS)
    scenario = scenario_of(options, sizes, order, output)
    machine, ticks = for_two(scenario.machine(sizes), options.agents), list(scenario.ticks())
    warmup = 1 + NUM_MODELS
    limits = roof(machine, ticks, warmup)
    found = {policy: play(machine, policy, ticks, warmup=warmup)[0] for policy in POLICIES}
    what = f"{hardware}, {order}, answers of {output}"
    rows = [row(one, limits, found) for one in found.values()]
    title = f"{NUM_MODELS} × {options.model} in memory for {IN_MEMORY}: {what}"
    report.tables.append(table(title, COLUMNS, rows))
    report.figures[what] = {name: numbers(one, limits) for name, one in found.items()}
    judge(report, what, found, limits, load_s(machine))


def for_two(machine: Machine, agents: int) -> Machine:
    """The machine with room for the largest models and what their agents' calls take."""
    assert machine.models is not None
    calls = agents * (machine.max_len // machine.geometry.block_size + 1)
    pages = machine.models.largest(machine.geometry.page_bytes) + calls
    return replace(machine, device_pages=IN_MEMORY * pages)


def scenario_of(options: argparse.Namespace, sizes: Sizes, order: str, output: int) -> Scenario:
    knobs = Knobs(
        agents=NUM_MODELS * options.agents, ticks=options.ticks, seed=options.seed,
        shared=256, private=512, new=64, output=output,
    )  # fmt: skip

    def schedule(knobs: Knobs) -> Schedule:
        return ModelTurns(knobs.agents, knobs.ticks, knobs.seed, order == "skewed")

    return of_workload(Kind(order, schedule, knobs), knobs, sizes)


COLUMNS = ["policy", "turns/s", "of roof", "÷ resident", "÷ reload on demand", "waits", "TTFT p50",
           "p95, ms", "GB loaded"]  # fmt: skip


def row(one: Outcome, limits: Roof, found: dict[str, Outcome]) -> list[str]:
    rate = one.turns_per_s
    p50, p95 = one.first_token_s
    return [
        one.policy,
        f"{rate:.1f}",
        f"{rate / roof_of(one, limits):.3f}",
        f"{rate / found['resident'].turns_per_s:.3f}",
        f"{rate / found['lru-recompute'].turns_per_s:.2f}",
        f"{one.waited:.0%}",
        f"{1e3 * p50:.0f}",
        f"{1e3 * p95:.0f}",
        f"{one.loaded_bytes / 1e9:.1f}",
    ]


def roof_of(one: Outcome, limits: Roof) -> float:
    return limits.resident_turns_per_s if one.policy == "resident" else limits.turns_per_s


def numbers(one: Outcome, limits: Roof) -> dict[str, Any]:
    return {
        "turns_per_s": one.turns_per_s,
        "of_roof": one.turns_per_s / roof_of(one, limits),
        "waits": one.waited,
        "ttft_s": one.first_token_s,
        "loaded_gb": one.loaded_bytes / 1e9,
    }


def load_s(machine: Machine) -> float:
    """Seconds in which the link brings a model."""
    assert machine.models is not None
    page_bytes = machine.geometry.page_bytes
    return machine.models.largest(page_bytes) * page_bytes / machine.link_bytes_per_s


def judge(
    report: Report, what: str, found: dict[str, Outcome], limits: Roof, load_s: float
) -> None:
    best, swap = found["deadline"].turns_per_s, found["lru-swap"].turns_per_s
    tick_s = found["resident"].tick_s[0]
    if load_s < tick_s:
        report.verdict(f"{what}: of the roof", best / limits.turns_per_s, least=LEAST_OF_ROOF)
    else:
        report.notes.append(
            f"{what}: the link is the limit: a model takes {1e3 * load_s:.0f} ms, and a tick with "
            f"all models resident {1e3 * tick_s:.0f} ms"
        )
    report.verdict(f"{what}: ÷ lru-swap", best / swap, least=1.0)
    if math.isclose(best, swap, rel_tol=EQUAL):
        report.notes.append(f"{what}: deadline and lru-swap are equal")
