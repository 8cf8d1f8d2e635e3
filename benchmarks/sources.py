"""What knowing who speaks next costs: sources, combination, and handing changes to the order.

Idle agents, all with a predicted next use, half of them from two sources. In each tick 1 % of the
estimates change. Beside it, in the same run, the alternative: counting every agent's distance down
by one, in numpy and, as the published reference keeps them, in a dict.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.report import Report, table
from scalesim.distance import Activation, Estimates, Learned, Proximity, Source
from scalesim.distance.clock import Clock
from scalesim.distance.distances import Distances
from scalesim.memory.eviction.policies import policy_named
from scalesim.memory.links.virtual_link import VirtualLink
from scalesim.memory.manager import MemoryManager

QUICK = {"agents": [1_000, 10_000], "ticks": 5}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--agents", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--ticks", type=int, default=21, help="updates that are timed, each")
    parser.add_argument("--changed", type=float, default=0.01, help="share that changes in a tick")


class Given(Source):
    """Says what it is handed."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.next = Estimates((), ())

    def changes(self, now: float) -> Estimates:
        given, self.next = self.next, Estimates((), ())
        return given


class World:
    """``num`` agents on an engine's own distances and memory, without requests."""

    def __init__(self, num: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.num = num
        self.ids = [f"agent {index}" for index in range(num)]
        self.distances = Distances(Clock())
        self.memory = MemoryManager(
            block_size=16, page_bytes=4096, device_pages=16, host_pages=16, num_rows=4,
            policy=policy_named("deadline"), link=VirtualLink(4096, 50e9),
        )  # fmt: skip
        self.sources = (Given("one"), Given("two"))
        for source in self.sources:
            self.distances.add(source)
        for start in range(0, num, 1000):  # in parts, so that little is left over of the making
            rows = np.arange(start, min(num, start + 1000))
            self.update(rows, self.sources[0])
            self.update(rows[::2], self.sources[1])

    def update(self, rows: Any, source: Given) -> int:
        """New estimates for ``rows``, far ahead; through to memory's order."""
        names = [self.ids[row] for row in rows.tolist()]
        now = self.distances.clock.now
        source.next = Estimates(names, now + 500.0 + self.rng.random(len(rows)) * 1e4, 0.9)
        changes = self.distances.poll()
        self.memory.hint(changes)  # as the engine's loop does
        return len(changes)

    def change(self, count: int) -> Callable[[], None]:
        rows = self.rng.choice(self.num, count, replace=False)
        source = self.sources[0]
        return lambda: self.update(rows, source) and None

    def tick(self) -> Callable[[], None]:
        return lambda: self.distances.tick(0.0) and None


def timed(make: Callable[[], Callable[[], None]], times: int) -> float:
    """The median of so many calls, in seconds of this thread's processor time: nothing here waits.
    What ``make`` does is not counted."""
    taken = []
    for _ in range(times):
        act = make()
        start = time.thread_time()
        act()
        taken.append(time.thread_time() - start)
    return float(np.median(taken))


def measure(num: int, options: argparse.Namespace) -> dict[str, float]:
    gc.collect()
    gc.freeze()
    before = resident_bytes()
    world = World(num, options.seed)
    held = resident_bytes() - before
    changed = max(1, int(options.changed * num))
    counts = np.full(num, 1e6)
    timesteps = dict.fromkeys(world.ids, 10**6)

    def count_down() -> None:
        for agent in timesteps:
            timesteps[agent] -= 1

    def count_down_numpy() -> None:
        np.subtract(counts, 1.0, out=counts)

    figures = {
        "agents": num,
        "changed": changed,
        "tick": timed(world.tick, options.ticks),
        "update": timed(partial(world.change, changed), options.ticks),
        "countdown_numpy": timed(lambda: count_down_numpy, options.ticks),
        "countdown_dict": timed(lambda: count_down, min(options.ticks, 5)),
        "bytes": held / num,
    }
    del world
    return figures


def kinds(num: int, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of an update of 1 % by kind of source; ``changes`` and combination, not the order."""
    rng = np.random.default_rng(options.seed)
    count = max(1, int(options.changed * num))
    ids = list(range(num))
    points = rng.random((num, 2)) * np.sqrt(num) * 10.0
    proximity = Proximity(ids, points, radius=2.0, max_speed=0.5, horizon=8.0, speeds=0.25)
    activation = Activation(ids, 0.0005)
    learned = Learned()
    found = {}
    for source in (proximity, activation):
        distances = Distances(Clock())
        distances.add(source)

        def change(source: Any = source, distances: Any = distances) -> Callable[[], None]:
            rows = rng.choice(num, count, replace=False)
            if source is proximity:
                points[rows] += rng.normal(size=(count, 2)) * 0.3
                source.move(rows.tolist(), points[rows])
            else:
                source.set(rows.tolist(), rng.random(count) * 0.0005)
            return lambda: distances.poll() and None

        found[source.name] = timed(change, options.ticks)
    distances = Distances(Clock())
    distances.add(learned)
    for tick in range(3):  # so that it has something to say
        for agent in range(min(num, 2000)):
            distances.called(agent)
            distances.ended(agent)
        distances.tick(float(tick))
    start = time.thread_time()
    for agent in range(min(num, 2000)):
        distances.called(agent)
        distances.ended(agent)
    found["learned, a call"] = (time.thread_time() - start) / min(num, 2000)
    return found


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def run(options: argparse.Namespace) -> Report:
    if options.quick:
        vars(options).update(QUICK)
    report = Report("sources")
    rows = [measure(num, options) for num in options.agents]
    by_kind = kinds(min(100_000, max(options.agents)), options)
    report.figures = {"by_agents": rows, "by_kind": by_kind}
    report.tables = [
        table(
            f"{options.changed:.0%} of the estimates change; medians, processor time",
            ["agents", "changed", "tick µs", "update ms", "µs/change", "count down: numpy ms",
             "dict ms", "bytes/agent"],
            [[f"{row['agents']:.0f}", f"{row['changed']:.0f}", f"{row['tick'] * 1e6:.0f}",
              f"{row['update'] * 1e3:.2f}", f"{row['update'] / row['changed'] * 1e6:.1f}",
              f"{row['countdown_numpy'] * 1e3:.2f}", f"{row['countdown_dict'] * 1e3:.1f}",
              f"{row['bytes']:.0f}"] for row in rows],
        ),
        table(
            f"An update by kind of source, {min(100_000, max(options.agents))} agents",
            ["source", "ms"],
            [[name, f"{seconds * 1e3:.3f}"] for name, seconds in by_kind.items()],
        ),
    ]  # fmt: skip
    judge(report, rows)
    return report


def judge(report: Report, rows: list[dict[str, float]]) -> None:
    report.verdict("tick: most agents over fewest", rows[-1]["tick"] / rows[0]["tick"], most=1.5)
    for row in rows:
        most = {100_000: 5.0, 1_000_000: 50.0}.get(int(row["agents"]))
        if most is not None:
            report.verdict(f"update, {row['agents']:.0f} agents", row["update"] * 1e3, most=most,
                           unit=" ms")  # fmt: skip
            report.verdict(f"an idle agent, {row['agents']:.0f} agents", row["bytes"], most=1024,
                           unit=" bytes")  # fmt: skip
