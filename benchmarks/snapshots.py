"""What snapshots, restores and forks cost, on a model that is a stub.

Agents with a prefix of their own are asked once; then a snapshot is taken, one more after some of
them spoke, and the engine is restored. While an engine runs, turns are timed with and without
snapshots behind them: a stub computes nothing, so this is the worst case for the engine's thread.
Processor time of all threads is shown beside wall time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Report, table
from benchmarks.stub_engine import BLOCK_SIZE, VOCAB_SIZE, StubSettings, stub_parts
from scalesim.engine.engine import Engine
from scalesim.engine.parts import EngineParts
from scalesim.memory.pools.page_access import ArrayPages
from scalesim.memory.pools.storage import allocate_pages

QUICK: dict[str, Any] = {"agents": 60, "forked": 20, "turns": 60, "rounds": 1}
OUTPUT, WAVE = 16, 250  # tokens; calls in one run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--agents", type=int, default=10_000)
    add("--forked", type=int, default=1_000, help="agents of the world that is forked")
    add("--prefix", type=int, default=112, help="tokens of each agent's private prefix")
    add("--page-bytes", type=int, default=4096)
    add("--turns", type=int, default=4_000, help="that are timed, with and without snapshots")
    add("--every", type=float, default=60.0, help="seconds between snapshots, for the share")
    add("--rounds", type=int, default=3)


def run(options: argparse.Namespace) -> Report:
    if options.quick:
        vars(options).update(QUICK)
    report = Report("snapshots")
    with tempfile.TemporaryDirectory() as folder:
        _whole(options, Path(folder), report)
    _forks(options, report)
    _running(options, report)
    return report


def _whole(options: argparse.Namespace, folder: Path, report: Report) -> None:
    """A snapshot of all agents, one more, and the way back."""
    rows, figures = [], report.figures
    rng = np.random.default_rng(options.seed)

    def measured(what: str, act: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        found = act()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        num_bytes = sum(path.stat().st_size for path in folder.iterdir())
        rows.append([what, f"{wall:.2f}", f"{cpu:.2f}", f"{num_bytes / 1e6:,.0f}"])
        figures[what] = {"wall_s": wall, "cpu_s": cpu, "folder_bytes": num_bytes}
        return found

    with Engine(parts(options, options.agents)) as engine:
        prompts = begun(engine, options, rng, options.agents)
        first = measured("snapshot of everything", lambda: engine.snapshot(folder))
        spoke = prompts[: max(1, options.agents // 20)]
        say(engine, spoke, range(len(spoke)))
        second = measured("snapshot after 5 % spoke", lambda: engine.snapshot(folder))
    again = parts(options, options.agents)
    engine = measured("restore", lambda: Engine.restore(folder, again))
    with engine:
        restored = engine.restored
        assert restored is not None and restored.num_missing == 0, restored
    title = f"{options.agents:,} agents, {first.num_pages:,} pages of {options.page_bytes:,} bytes"
    columns = ["what", "wall s", "processor s", "folder, MB"]
    report.tables.append(table(title, columns, rows))
    report.notes.append(
        f"the second snapshot wrote {second.num_new_pages:,} of {second.num_pages:,} pages"
    )
    took = figures["restore"]["wall_s"]
    report.verdict(f"restore of {options.agents:,} agents", took, most=10.0, unit=" s")


def _forks(options: argparse.Namespace, report: Report) -> None:
    """Fork a world, and close the fork."""
    forked, closed, cpu = [], [], []
    with Engine(parts(options, options.forked)) as engine:
        begun(engine, options, np.random.default_rng(options.seed), options.forked)
        counters = engine.parts.memory.counters
        for _ in range(max(5, options.rounds)):
            copied = counters.copied_pages
            start, start_cpu = time.perf_counter(), time.process_time()
            world = engine.fork_world()
            forked.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
            assert counters.copied_pages == copied
            start = time.perf_counter()
            world.close()
            closed.append(time.perf_counter() - start)
    took = statistics.median(forked) * 1e3
    rows = [
        [name, f"{statistics.median(times) * 1e3:.1f}", f"{max(times) * 1e3:.1f}"]
        for name, times in (("fork", forked), ("its processor time", cpu), ("close", closed))
    ]
    report.figures["forks"] = {"forked_s": forked, "forked_cpu_s": cpu, "closed_s": closed}
    title = f"A world of {options.forked:,} agents; no page is copied"
    report.tables.append(table(title, ["what", "median ms", "longest ms"], rows))
    report.verdict(f"fork of {options.forked:,} agents", took, most=50.0, unit=" ms")


def _running(options: argparse.Namespace, report: Report) -> None:
    """Turns of an engine, without and with one snapshot after another behind them."""
    plain, beside, taken = [], [], 0
    with Engine(parts(options, options.forked)) as engine, tempfile.TemporaryDirectory() as root:
        rng = np.random.default_rng(options.seed)
        prompts = begun(engine, options, rng, options.forked)
        engine.snapshot(root)
        for _ in range(options.rounds):
            plain.append(turns(engine, prompts, options.turns))
            over = threading.Event()

            def take(over: threading.Event = over) -> None:
                nonlocal taken
                while not over.is_set():
                    engine.snapshot(root)
                    taken += 1

            taker = threading.Thread(target=take)
            taker.start()
            beside.append(turns(engine, prompts, options.turns))
            over.set()
            taker.join()
    each = max(0.0, (sum(beside) - sum(plain)) / max(1, taken))
    share = each / options.every
    report.figures["running"] = {
        "plain_s": plain, "beside_s": beside, "snapshots": taken, "cost_s": each, "share": share,
    }  # fmt: skip
    rows = [
        ["without", f"{options.turns / statistics.median(plain):,.0f}", "–"],
        ["one snapshot after another", f"{options.turns / statistics.median(beside):,.0f}",
         f"{each * 1e3:.0f}"],
    ]  # fmt: skip
    title = f"{options.forked:,} agents who take turns; {taken} snapshots"
    report.tables.append(table(title, ["", "turns/s", "ms of the turns a snapshot"], rows))
    name = f"share of the time, with a snapshot every {options.every:g} s"
    report.verdict(name, 100.0 * share, most=3.0, unit=" %")


def parts(options: argparse.Namespace, agents: int) -> EngineParts:
    """Parts that hold all agents, two thirds of them on the host."""
    pages = agents * (options.prefix // BLOCK_SIZE + 4)
    settings = StubSettings(
        device_pages=pages // 3 + 64,
        host_pages=pages,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        max_len=BLOCK_SIZE * 64,
        policy="deadline",
        page_bytes=options.page_bytes,
    )
    made = stub_parts(settings, seed=options.seed)
    device = allocate_pages(settings.device_pages + 1, options.page_bytes)
    host = allocate_pages(settings.host_pages, options.page_bytes)
    identity = f"stub, {options.page_bytes}"
    return replace(made, pages=ArrayPages(device, host), kv_identity=lambda: identity)


def begun(
    engine: Engine, options: argparse.Namespace, rng: np.random.Generator, agents: int
) -> list[list[int]]:
    """Ask all agents once; what each has heard and said so far."""
    prompts: list[list[int]] = rng.integers(0, VOCAB_SIZE, (agents, options.prefix)).tolist()
    say(engine, prompts, range(agents))
    return prompts


def say(engine: Engine, prompts: Sequence[list[int]], agents: Sequence[int]) -> None:
    """One call of each of ``agents``, whose prompts grow."""
    for start in range(0, len(agents), WAVE):
        wave = agents[start : start + WAVE]
        requests = [
            engine.agent(agent).request(prompts[agent], max_tokens=OUTPUT, ignore_eos=True)
            for agent in wave
        ]
        for agent, reply in zip(wave, engine.run(requests), strict=True):
            prompts[agent] += reply.token_ids  # type: ignore[union-attr]
            engine.expect(agent, 1 + agent % 50)
        engine.tick()


def turns(engine: Engine, prompts: list[list[int]], count: int) -> float:
    """Seconds of ``count`` turns, agents one after another; prompts go back to their beginnings."""
    kept = [list(prompt) for prompt in prompts]
    start = time.perf_counter()
    for first in range(0, count, len(kept)):
        say(engine, kept, range(min(len(kept), count - first)))
    return time.perf_counter() - start
