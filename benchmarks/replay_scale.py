"""A million agents in replay, and what bookkeeping costs at 1 k to 1 M agents: time and memory.

The peer of a tick is what the published ScaleSim does on each: decrement every agent's distance and
put it into its bucket again, in plain Python, measured here beside ours.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.report import Report, table
from benchmarks.sources import timed
from scalesim.config import SchedulerConfig
from scalesim.distance import Estimates, Source
from scalesim.distance.voice import voice_of
from scalesim.engine.loop import EngineLoop
from scalesim.engine.parts import EngineParts
from scalesim.memory.eviction.policies import policy_named
from scalesim.memory.links.virtual_link import VirtualLink
from scalesim.memory.manager import MemoryManager
from scalesim.replay.arms import play
from scalesim.replay.content import VOCAB_SIZE
from scalesim.replay.scenario import Sizes, of_workload
from scalesim.replay.workloads import workload
from scalesim.requests.prompt import TextModel
from scalesim.scheduler.scheduler import Scheduler
from scalesim.testing.tag_runner import StubRunner

BLOCKS, BLOCK_SIZE = 8, 16
CHANGED = 0.01
EXPIRING = 100  # hints a tick, whatever the number of agents
TIMES = 20
# A step of the engine holds some forty calls' prefill; with the 512 tokens of the other replays it
# would be five, and what costs a step's time would be counted eight times as often.
MAX_TOKENS = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--agents", type=int, default=1_000_000, help="of the replay; 0 leaves it out")
    add("--ticks", type=int, default=100)
    add("--active", type=float, default=0.02)
    add("--counts", type=int, nargs="*", default=[1_000, 10_000, 100_000, 1_000_000])


def run(options: argparse.Namespace) -> Report:
    report = Report("replay-scale")
    if options.quick:
        options.agents, options.ticks, options.counts = 500, 5, [500]
    rows = []
    for count in options.counts:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            one = fresh.submit(ticks, count).result()  # with no memory left over of the one before
        report.figures[f"{count} agents"] = one
        rows.append([f"{count}", *(f"{one[name]:.3f}" for name in TICKS)])
        if count in (100_000, 1_000_000):
            most = 5.0 if count == 100_000 else 50.0
            report.verdict(f"{count} agents: update and plan", one["update + plan ms"], most=most,
                           unit=" ms")  # fmt: skip
    if rows:
        for name in ("tick µs", EXPIRE):
            first, last = (report.figures[f"{count} agents"][name] for count in
                           (options.counts[0], options.counts[-1]))  # fmt: skip
            report.verdict(f"a {name}: most agents over fewest", last / first, most=1.5)
        kib = report.figures[f"{options.counts[-1]} agents"]["B an idle agent"]
        report.verdict("an idle agent, without its tokens", kib, most=1024, unit=" B")
        report.tables.append(table("A tick and a plan, by the number of agents", ["agents", *TICKS],
                                   rows))  # fmt: skip
    if options.agents:
        replayed(report, options)
    return report


EXPIRE = f"tick in which {EXPIRING} hints expire µs"
TICKS = ("tick µs", EXPIRE, "update + plan ms", "O(N) decrement ms", "B an idle agent")


class Given(Source):
    """Says what it is handed, and is believed however often that comes to nothing."""

    name = "given"
    judges_itself = True

    def __init__(self) -> None:
        super().__init__()
        self.next = Estimates((), ())

    def changes(self, now: float) -> Estimates:
        given, self.next = self.next, Estimates((), ())
        return given


def ticks(count: int) -> dict[str, float]:
    """A loop with ``count`` idle agents, each with a path on the host, who are needed much later;
    then ticks with nothing said; updates of one in a hundred; and ticks in which as many hints
    expire at every size. In this thread's processor time: nothing here waits.

    Agents are named by the same objects all the time, as a simulation does."""
    before = resident_bytes()
    loop = filled(count)
    held = resident_bytes() - before - count * BLOCKS * BLOCK_SIZE * 4
    rng, ids, given = np.random.default_rng(0), list(loop.memory.owners.agents), Given()

    def some(number: int) -> list[Any]:
        return [ids[row] for row in rng.choice(count, min(number, count), replace=False)]

    def tick() -> None:
        loop.advice.tick(loop.clock.now + 1.0, 1.0, to=None)

    def update() -> Callable[[], None]:
        tick()
        hints = {agent: 50.0 + 90.0 * (agent % 97) / 97 for agent in some(int(count * CHANGED))}

        def act() -> None:
            loop.advice.expect(hints, absolute=False)
            loop.memory.plan(loop.clock.now)

        return act

    def expiring() -> Callable[[], None]:
        names, now = some(EXPIRING), loop.clock.now
        given.next = Estimates(names, np.full(len(names), now + 1.0))
        loop.advice.poll()
        return tick

    quiet_s, update_s = timed(lambda: tick, TIMES), timed(update, TIMES)
    loop.advice.listen(voice_of(given))
    for _ in range(5):  # until the first ones expire
        expiring()()
    values = (
        quiet_s * 1e6,
        timed(expiring, TIMES) * 1e6,
        update_s * 1e3,
        decrement_s(count) * 1e3,
        held / count,
    )
    return dict(zip(TICKS, values, strict=True))


def filled(count: int) -> EngineLoop:
    """Every agent has spoken once; most of their state is on the host."""
    device = max(64, count // 50) * BLOCKS
    link = VirtualLink(64, 1e15)
    memory = MemoryManager(
        block_size=BLOCK_SIZE, page_bytes=64, device_pages=device + 1,
        host_pages=(count + 1) * (BLOCKS + 1), num_rows=4, policy=policy_named("deadline"),
        link=link,
    )  # fmt: skip
    scheduler = Scheduler(memory, SchedulerConfig(max_num_seqs=2), BLOCKS * BLOCK_SIZE)
    model = TextModel(VOCAB_SIZE, frozenset(), BLOCKS * BLOCK_SIZE, device * BLOCK_SIZE)
    loop = EngineLoop(
        EngineParts(StubRunner(), memory, scheduler, link, model, time_s=lambda: link.now_s)
    )
    rng = np.random.default_rng(1)
    for agent in range(count):
        tokens = rng.integers(0, VOCAB_SIZE, BLOCKS * BLOCK_SIZE, np.int32).tobytes()
        lease = memory.acquire(agent, tokens, BLOCKS)
        while lease is None:
            link.advance_to(link.now_s + 1e-3)
            memory.poll()
            lease = memory.acquire(agent, tokens, BLOCKS)
        memory.release(lease, tokens, BLOCKS * BLOCK_SIZE)
        memory.table.take_changes()  # as a launch would
        loop.advice.expect({agent: 500.0 + 90.0 * (agent % 97) / 97}, absolute=True)
    return loop


def decrement_s(count: int) -> float:
    """One tick as the published code does it: every distance less one, all buckets anew."""
    distances = {agent: 1 + agent % 97 for agent in range(count)}
    start = time.thread_time()
    buckets: list[set[int]] = [set() for _ in range(100)]
    for agent, distance in distances.items():
        distances[agent] = max(0, distance - 1)
        buckets[distance - 1].add(agent)
    return time.thread_time() - start


def replayed(report: Report, options: argparse.Namespace) -> None:
    sizes = Sizes(model="llama-3.2-1b", residency=0.05, host=1.5, running=256)
    kind, knobs = workload(
        "w2", agents=options.agents, ticks=options.ticks, active=options.active, sigma=0.0,
        shared=256, private=128, new=64, output=16, growth=0.0, opening=False, seed=options.seed,
    )  # fmt: skip
    scenario = of_workload(kind, knobs, sizes)
    machine = replace(scenario.machine(sizes), max_num_batched_tokens=MAX_TOKENS)
    start, start_cpu = time.perf_counter(), time.thread_time()
    outcome, _ = play(machine, "deadline", scenario.ticks(), warmup=0)
    minutes = (time.perf_counter() - start) / 60
    cpu_minutes = (time.thread_time() - start_cpu) / 60
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures: dict[str, Any] = {
        "agents": options.agents, "ticks": options.ticks, "turns": outcome.turns,
        "minutes": minutes, "of processor time": cpu_minutes,
        "µs of it a turn": cpu_minutes * 60e6 / max(1, outcome.turns),
        "peak GB": peak / 1e9, "virtual s": outcome.seconds,
    }  # fmt: skip
    report.figures["replay"] = figures
    row = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in figures.values()]
    report.tables.append(table("The replay", list(figures), [row]))
    report.verdict("the replay, processor time", cpu_minutes, most=20, unit=" min")
    report.verdict("its peak memory", peak / 1e9, most=8, unit=" GB")


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
