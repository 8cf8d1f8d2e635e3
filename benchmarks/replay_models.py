"""Several models in one pool, in replay: each policy on six models at device memory for two.

Virtual time on a stated machine; same seed, same table. In a tick all agents of one model call; the
models come in turn (cyclic), or some more often than others (skewed). ``lru-recompute`` has no host
pool: what it lacks is loaded again from its source when it is asked for. Sources are in memory, so
that this is as fast as the link. Each rate is held against the roof, and against a schedule of the
link that is made in hindsight (``link_schedule``), beside the computing of ``resident``: the roof
takes loading and computing apart, and lets the link bring more than there is room for. Where the
schedule comes up to 0.9 of the roof, the roof counts.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from benchmarks.link_schedule import Turn, scheduled_s
from benchmarks.report import Report, table
from scalesim.replay.arms import Outcome, play
from scalesim.replay.knobs import Knobs
from scalesim.replay.machine import Machine
from scalesim.replay.roof import Computed, Roof, computed_tokens, roof
from scalesim.replay.scenario import Scenario, Sizes, of_workload
from scalesim.replay.schedules import ORDER, Schedule
from scalesim.replay.workloads import Kind
from scalesim.trace.trace import TraceTick

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
    what = f"{hardware}, {order}, answers of {output}"
    found, tick_s = {}, []
    for policy in POLICIES:
        print(f"{what}: {policy}", file=sys.stderr, flush=True)
        found[policy], simulation = play(machine, policy, ticks, warmup=warmup)
        if policy == "resident":
            tick_s = simulation.log.tick_s
    schedule = scheduled(machine, ticks, tick_s, warmup)
    rows = [row(one, limits, schedule, found) for one in found.values()]
    title = f"{NUM_MODELS} × {options.model} in memory for {IN_MEMORY}: {what}"
    report.tables.append(table(title, COLUMNS, rows))
    report.figures[what] = {name: numbers(one, limits, schedule) for name, one in found.items()}
    judge(report, what, found, limits.turns_per_s, schedule)


def scheduled(machine: Machine, ticks: list[TraceTick], tick_s: list[float], warmup: int) -> float:
    """Turns a second of the link's schedule, beside ticks that compute for ``tick_s``."""
    models, page_bytes = machine.models, machine.geometry.page_bytes
    assert models is not None
    read = {number: Computed(machine.block_size_of(number)) for number in models.all}
    turns = []
    for tick, seconds in zip(ticks, tick_s, strict=True):
        number = models.numbers[tick.calls[0].agent]
        read[number].begin_tick()
        for call in tick.calls:
            read[number].add(computed_tokens(call), call.prompt_len)
        num_pages = models.num_pages(number, page_bytes) + read[number].pages_read
        turns.append(Turn(number, num_pages, seconds))
    load_s = page_bytes / machine.link_bytes_per_s
    took_s = scheduled_s(turns[warmup:], machine.device_pages, load_s)
    return sum(len(tick.calls) for tick in ticks[warmup:]) / took_s


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


COLUMNS = ["policy", "turns/s", "of roof", "of schedule", "÷ resident", "÷ reload on demand",
           "waits", "TTFT p50", "p95, ms", "GB loaded"]  # fmt: skip


def row(one: Outcome, limits: Roof, schedule: float, found: dict[str, Outcome]) -> list[str]:
    rate = one.turns_per_s
    p50, p95 = one.first_token_s
    return [
        one.policy,
        f"{rate:.1f}",
        f"{rate / roof_of(one, limits):.3f}",
        "-" if one.policy == "resident" else f"{rate / schedule:.3f}",
        f"{rate / found['resident'].turns_per_s:.3f}",
        f"{rate / found['lru-recompute'].turns_per_s:.2f}",
        f"{one.waited:.0%}",
        f"{1e3 * p50:.0f}",
        f"{1e3 * p95:.0f}",
        f"{one.loaded_bytes / 1e9:.1f}",
    ]


def roof_of(one: Outcome, limits: Roof) -> float:
    return limits.resident_turns_per_s if one.policy == "resident" else limits.turns_per_s


def numbers(one: Outcome, limits: Roof, schedule: float) -> dict[str, Any]:
    return {
        "turns_per_s": one.turns_per_s,
        "of_roof": one.turns_per_s / roof_of(one, limits),
        "schedule": schedule,
        "waits": one.waited,
        "ttft_s": one.first_token_s,
        "loaded_gb": one.loaded_bytes / 1e9,
    }


def judge(
    report: Report, what: str, found: dict[str, Outcome], limit: float, schedule: float
) -> None:
    best, swap = found["deadline"].turns_per_s, found["lru-swap"].turns_per_s
    if schedule >= LEAST_OF_ROOF * limit:
        report.verdict(f"{what}: of the roof", best / limit, least=LEAST_OF_ROOF)
    else:
        report.verdict(f"{what}: of the link's schedule", best / schedule, least=LEAST_OF_ROOF)
        report.notes.append(
            f"{what}: the link's schedule gives {schedule:.1f} turns/s, the roof {limit:.1f}"
        )
    report.verdict(f"{what}: ÷ lru-swap", best / swap, least=1.0)
    if math.isclose(best, swap, rel_tol=EQUAL):
        report.notes.append(f"{what}: deadline and lru-swap are equal")
