"""An arm: one policy on one machine, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from scalesim.config import SchedulerConfig
from scalesim.distance.estimates import Source
from scalesim.loop import Parts
from scalesim.memory.links import VirtualLink
from scalesim.memory.look_ahead import PlannerConfig
from scalesim.memory.manager import MemoryManager
from scalesim.memory.policies import policy_named
from scalesim.replay.bound import belady_loads, floor_s, roofline
from scalesim.replay.hardware import CostModel
from scalesim.replay.runner import VirtualRunner
from scalesim.replay.simulation import Simulation
from scalesim.requests import TextModel
from scalesim.scheduler.scheduler import Scheduler
from scalesim.testing.tag_runner import StubRunner
from scalesim.trace import TraceStep

VOCAB_SIZE = 32_000
RESIDENT_PAGES = 1 << 22


@dataclass(frozen=True, slots=True)
class Machine:
    """``device_pages``, ``host_pages``: of the model's page size. ``link_share``: of the link's
    rate. ``first_tokens``: of each prompt, which stand for an adapter's pages.

    ``max_num_batched_tokens`` is about where a step's arithmetic begins to take longer than reading
    the weights: more prefill in one step makes those that decode wait (Sarathi-Serve, OSDI 2024).
    """

    cost: CostModel
    device_pages: int
    host_pages: int
    max_len: int
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    block_size: int | None = None
    link_share: float = 1.0
    first_tokens: int = 0
    planner: PlannerConfig = field(default_factory=PlannerConfig)

    def parts(self, policy_name: str) -> Parts:
        """Virtual parts for ``Loop``."""
        policy = policy_named(policy_name)
        geometry = self.cost.model.geometry(self.block_size)
        link = VirtualLink(
            geometry.page_bytes, self.cost.hardware.link_bytes_per_s * self.link_share
        )
        pages = self.device_pages if policy.limited else max(RESIDENT_PAGES, self.host_pages)
        memory = MemoryManager(
            block_size=geometry.block_size,
            page_bytes=geometry.page_bytes,
            device_pages=pages + 1,
            host_pages=self.host_pages,
            num_rows=2 * self.max_num_seqs + 1,
            policy=policy,
            link=link,
            planner=self.planner,
        )
        config = SchedulerConfig(
            max_num_seqs=self.max_num_seqs, max_num_batched_tokens=self.max_num_batched_tokens
        )
        runner = VirtualRunner(StubRunner(VOCAB_SIZE), link, self.cost, self.first_tokens)
        model = TextModel(VOCAB_SIZE, frozenset(), self.max_len, pages * geometry.block_size)
        scheduler = Scheduler(memory, config, min(self.max_len, model.pool_len))
        return Parts(runner, memory, scheduler, link, model, time_s=lambda: link.now_s)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy gave, after the warm-up; ``total`` counts from the start. Seconds are
    virtual."""

    policy: str
    seconds: float
    turns: int
    step_s: tuple[float, float]  # p50, p95 of a step of the simulation
    first_token_s: tuple[float, float]
    page_bytes: int
    counters: dict[str, float]
    total: dict[str, float]
    total_seconds: float
    total_turns: int

    @property
    def turns_per_s(self) -> float:
        return self.turns / self.seconds

    @property
    def hits(self) -> float:
        kinds = ("device_blocks", "late_blocks", "host_blocks", "computed_blocks")
        return self.counters["device_blocks"] / max(1, sum(self.counters[kind] for kind in kinds))

    @property
    def loaded_bytes(self) -> float:
        return self.counters["loaded_pages"] * self.page_bytes

    @property
    def saved_bytes(self) -> float:
        return self.counters["saved_pages"] * self.page_bytes


@dataclass(frozen=True, slots=True)
class Bound:
    """``loaded_bytes``: Belady's, in the order in which ``resident`` served; ``held_bytes``: the
    same where what runs at once keeps its pages to its end. ``link_share``: the time that Belady's
    take on the link, of the time that computing takes with all resident."""

    loaded_bytes: float
    held_bytes: float
    turns_per_s: float
    link_share: float
    floor_turns_per_s: float


def play(
    machine: Machine,
    policy: str,
    steps: Iterable[TraceStep],
    *,
    sources: Iterable[Source] = (),
    warmup: int = 1,
    leap: bool = True,
    witness: bool = False,
) -> tuple[Outcome, Simulation]:
    """Replay ``steps`` under ``policy``, with ``sources`` beside what the steps say. The first
    ``warmup`` steps do not count."""
    foresight = policy_named(policy).foresight
    simulation = Simulation(
        machine.parts(policy), sources=sources, foresight=foresight, leap=leap, witness=witness
    )
    before: dict[str, float] = {}
    start_s, turns, index = 0.0, 0, 0
    for index, step in enumerate(steps):
        if index == warmup:
            before, start_s = counted(simulation), simulation.link.now_s
            turns = simulation.log.turns
        simulation.step(step)
    log, total = simulation.log, counted(simulation)
    measured = log.step_s[warmup:] if index >= warmup else log.step_s
    busy = [seconds for seconds in measured if seconds > 0.0] or [0.0]
    return Outcome(
        policy,
        simulation.link.now_s - start_s,
        log.turns - turns,
        percentiles(busy),
        percentiles(log.first_token_s[turns:] or [0.0]),
        machine.cost.model.geometry(machine.block_size).page_bytes,
        {name: value - before.get(name, 0.0) for name, value in total.items()},
        total,
        simulation.link.now_s,
        log.turns,
    ), simulation


def bound(machine: Machine, resident: Outcome, simulation: Simulation) -> Bound:
    """What any policy may reach on ``machine``, from a ``resident`` run that kept its accesses."""
    accesses = [access for _, access in sorted(simulation.log.accesses.items())]
    num_bytes, held_bytes = (
        float(sum(loads[-resident.turns :])) * resident.page_bytes
        for loads in (
            belady_loads(accesses, machine.device_pages),
            belady_loads(accesses, machine.device_pages, held_to_end=True),
        )
    )
    device, spent = machine.cost.hardware, resident.counters
    rate = device.link_bytes_per_s * machine.link_share
    floor = floor_s(
        spent["spent_flops"],
        device.peak_flops * device.gemm_share,
        spent["spent_read_bytes"],
        device.memory_bytes_per_s * device.memory_share,
    )
    return Bound(
        num_bytes,
        held_bytes,
        roofline(resident.turns, resident.seconds, num_bytes, rate),
        num_bytes / rate / resident.seconds,
        resident.turns / floor,
    )


def compare(
    machine: Machine,
    policies: Sequence[str],
    steps: Callable[[], Iterable[TraceStep]],
    *,
    warmup: int = 1,
) -> tuple[list[Outcome], Bound | None]:
    """An outcome for each policy, on the same steps; the bound if ``resident`` is among them."""
    outcomes, found = [], None
    for policy in policies:
        witness = policy == "resident"
        outcome, simulation = play(machine, policy, steps(), warmup=warmup, witness=witness)
        outcomes.append(outcome)
        if witness:
            found = bound(machine, outcome, simulation)
    return outcomes, found


def counted(simulation: Simulation) -> dict[str, float]:
    """Every counter there is, by name."""
    spent = asdict(simulation.runner.spent)
    return {
        **asdict(simulation.loop.memory.counters),
        **{f"spent_{k}": v for k, v in spent.items()},
    }


def percentiles(values: list[float]) -> tuple[float, float]:
    p50, p95 = np.percentile(values, [50, 95])
    return float(p50), float(p95)
