"""An engine with everything but a model: for measuring what the rest of it costs.

Time is virtual for the link and the planner, real for the figures: a step is said to take
``step_s`` and the link to carry ``link_pages_per_s``, so that loads take their time among the
steps, the same in every run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from scalesim.batch import Batch, LaunchedStep, Runner, StepOutput
from scalesim.config import SchedulerConfig
from scalesim.engine.parts import EngineParts
from scalesim.memory.eviction.policies import policy_named
from scalesim.memory.links.virtual_link import VirtualLink
from scalesim.memory.manager import MemoryManager
from scalesim.memory.prefetch.config import PlannerConfig
from scalesim.memory.prefetch.planner import UNKNOWN, Forecast
from scalesim.memory.prefetch.prefetcher import Prefetcher
from scalesim.requests.prompt import TextModel
from scalesim.scheduler.scheduler import Scheduler
from scalesim.testing.tag_runner import StubRunner

VOCAB_SIZE = 32_000
BLOCK_SIZE = 16


@dataclass
class Phases:
    """Host seconds of one step of the loop, by what they went to; ``num_seqs`` of it, if it ran."""

    runner_s: float = 0.0
    schedule_s: float = 0.0
    plan_s: float = 0.0
    update_s: float = 0.0
    num_seqs: int = 0
    num_tokens: int = 0


@dataclass
class Stopwatch:
    """The phases of the current step, by ``clock``. ``take`` starts the next one's."""

    clock: Callable[[], float] = time.perf_counter
    phases: Phases = field(default_factory=Phases)

    def take(self) -> Phases:
        taken, self.phases = self.phases, Phases()
        return taken


class VirtualTimeRunner:
    """Another runner in virtual time: each step moves the link's clock on by ``step_s``."""

    def __init__(self, inner: Runner, link: VirtualLink, step_s: float, watch: Stopwatch) -> None:
        self.steps_in_flight = inner.steps_in_flight
        self._inner, self._link, self._step_s, self._watch = inner, link, step_s, watch

    def launch(self, batch: Batch) -> LaunchedStep:
        start = self._watch.clock()
        step = self._inner.launch(batch)
        phases = self._watch.phases
        phases.runner_s += self._watch.clock() - start
        phases.num_seqs, phases.num_tokens = batch.num_seqs, batch.num_tokens
        self._link.advance_to(self._link.now_s + self._step_s)
        return step

    def collect(self, step: LaunchedStep) -> StepOutput:
        start = self._watch.clock()
        output = self._inner.collect(step)
        self._watch.phases.runner_s += self._watch.clock() - start
        return output


class TimedScheduler(Scheduler):
    """The scheduler, its two doors timed."""

    def __init__(
        self, memory: MemoryManager, config: SchedulerConfig, max_len: int, watch: Stopwatch
    ) -> None:
        super().__init__(memory, config, max_len)
        self._watch = watch

    def schedule(self) -> Batch | None:
        start = self._watch.clock()
        batch = super().schedule()
        self._watch.phases.schedule_s += self._watch.clock() - start
        return batch

    def update(self, output: StepOutput) -> None:
        start = self._watch.clock()
        super().update(output)
        self._watch.phases.update_s += self._watch.clock() - start


class TimedPlanner(Prefetcher):
    """The planner, timed."""

    def __init__(self, watch: Stopwatch, *parts: Any) -> None:
        super().__init__(*parts)
        self._watch = watch

    def plan(self, wall_s: float, forecast: Forecast = UNKNOWN) -> None:
        start = self._watch.clock()
        super().plan(wall_s, forecast)
        self._watch.phases.plan_s += self._watch.clock() - start


@dataclass(frozen=True)
class StubSettings:
    """Sizes in pages of ``BLOCK_SIZE`` tokens, without the null page."""

    device_pages: int
    host_pages: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_len: int
    policy: str
    page_bytes: int = 64
    link_pages_per_s: float = 24_000.0  # 50 GB/s of 2 MiB pages
    step_s: float = 0.025
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    guarded: bool = True  # page events are recorded, and counts compared after each step


def stub_parts(
    settings: StubSettings, watch: Stopwatch | None = None, seed: int = 0
) -> EngineParts:
    """Parts for an ``Engine``; with a ``watch``, time is virtual and each phase is timed."""
    policy = policy_named(settings.policy)
    rate = settings.link_pages_per_s * settings.page_bytes
    link = VirtualLink(settings.page_bytes, rate)
    memory = MemoryManager(
        block_size=BLOCK_SIZE,
        page_bytes=settings.page_bytes,
        device_pages=settings.device_pages + 1,
        host_pages=settings.host_pages,
        num_rows=2 * settings.max_num_seqs + 1,
        policy=policy,
        link=link,
        planner_config=settings.planner,
        make_planner=Prefetcher if watch is None else partial(TimedPlanner, watch),
        record=settings.guarded,
    )
    config = SchedulerConfig(
        max_num_seqs=settings.max_num_seqs, max_num_batched_tokens=settings.max_num_batched_tokens
    )
    runner: Runner = StubRunner(VOCAB_SIZE)
    scheduler = Scheduler(memory, config, settings.max_len)
    if watch is not None:
        runner = VirtualTimeRunner(runner, link, settings.step_s, watch)
        scheduler = TimedScheduler(memory, config, settings.max_len, watch)
    model = TextModel(VOCAB_SIZE, frozenset(), settings.max_len, settings.device_pages * BLOCK_SIZE)
    clock = time.monotonic if watch is None else lambda: link.now_s
    return EngineParts(
        runner,
        memory,
        scheduler,
        link,
        model,
        seed,
        clock,
        integrity="quarantine" if settings.guarded else "off",
    )
