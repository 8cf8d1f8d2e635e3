"""Calls from outside the engine's thread: 10 000 gathered coroutines and 200 threads, against one
``run``.

All arms put the same requests to a fresh engine on the tag runner, with a pool for a quarter of the
agents' state, and must get the same tokens.
Arms take turns, in another order each time; medians are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.report import Report, table
from scalesim.engine.engine import Engine
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams
from scalesim.testing.tag_parts import tag_parts

QUICK: dict[str, Any] = {"calls": 300, "agents": 60, "threads": 20, "rounds": 1}
TARGET = 0.9
BLOCK_SIZE = 16
VOCAB_SIZE = 32_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--calls", type=int, default=10_000)
    add("--agents", type=int, default=2_000)
    add("--threads", type=int, default=200)
    add("--prefix", type=int, default=128, help="tokens of each agent's private prefix")
    add("--new", type=int, default=32, help="tokens of each call behind the prefix")
    add("--output", type=int, default=16, help="tokens that each call generates")
    add("--running", type=int, default=64, help="sequences that run at once")
    add("--rounds", type=int, default=5, help="how often each arm runs")


def make_requests(options: argparse.Namespace) -> list[Request]:
    """Agents in turn; a call is its agent's prefix and tokens of its own."""
    rng = np.random.default_rng(options.seed)
    prefixes = rng.integers(0, VOCAB_SIZE, (options.agents, options.prefix), np.int32)
    new = rng.integers(0, VOCAB_SIZE, (options.calls, options.new), np.int32)
    params = SamplingParams(max_tokens=options.output, ignore_eos=True)
    return [
        Request(np.concatenate([prefixes[i % options.agents], new[i]]), i % options.agents, params)
        for i in range(options.calls)
    ]


def new_engine(options: argparse.Namespace) -> Engine:
    """A pool for a quarter of the agents' state, and a host pool for all of it."""
    length = options.prefix + options.new + options.output
    pages = options.agents * -(-length // BLOCK_SIZE)
    engine = Engine(
        tag_parts(
            device_pages=max(pages // 4, 2 * options.running),
            host_pages=pages,
            block_size=BLOCK_SIZE,
            max_num_seqs=options.running,
            verify="new",
            vocab_size=VOCAB_SIZE,
        )
    )
    for agent in range(options.agents):
        engine.agent(agent)
    return engine


def by_run(engine: Engine, requests: list[Request], options: argparse.Namespace) -> list[Any]:
    return list(engine.run(requests))


def by_gather(engine: Engine, requests: list[Request], options: argparse.Namespace) -> list[Any]:
    async def everything() -> list[Reply]:
        return await asyncio.gather(*(engine.generate_async(request) for request in requests))

    return asyncio.run(everything())


def by_threads(engine: Engine, requests: list[Request], options: argparse.Namespace) -> list[Any]:
    replies: list[Any] = [None] * len(requests)

    def work(first: int) -> None:
        for index in range(first, len(requests), options.threads):
            replies[index] = engine.generate(requests[index])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(options.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return replies


Arm = Callable[[Engine, list[Request], argparse.Namespace], list[Any]]
ARMS: dict[str, Arm] = {"engine.run": by_run, "asyncio.gather": by_gather, "threads": by_threads}


def run(options: argparse.Namespace) -> Report:
    if options.quick:
        vars(options).update(QUICK)
    requests = make_requests(options)
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    texts: dict[str, list[tuple[int, ...]]] = {}
    for turn in range(options.rounds):
        names = list(ARMS)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            with new_engine(options) as engine:
                start = time.perf_counter()
                replies = ARMS[name](engine, requests, options)
                seconds[name].append(time.perf_counter() - start)
            texts[name] = [reply.token_ids for reply in replies]
    return make_report(options, seconds, texts)


def make_report(
    options: argparse.Namespace,
    seconds: dict[str, list[float]],
    texts: dict[str, list[tuple[int, ...]]],
) -> Report:
    report = Report("async")
    base = statistics.median(seconds["engine.run"])
    rows = []
    for name, times in seconds.items():
        median = statistics.median(times)
        differing = sum(a != b for a, b in zip(texts[name], texts["engine.run"], strict=True))
        rows.append(
            [name, f"{options.calls / median:.0f}", f"{base / median:.3f}",
             f"{min(times):.2f}-{max(times):.2f}", str(differing)]
        )  # fmt: skip
        report.figures[name] = {
            "turns_per_s": options.calls / median,
            "of_engine_run": base / median,
            "seconds": times,
            "texts_differing": differing,
        }
        if name != "engine.run":
            report.verdict(f"{name}: share of engine.run's turns/s", base / median, least=TARGET)
        report.verdict(f"{name}: texts that differ", differing, most=0)
    title = f"{options.calls} calls of {options.agents} agents, {options.threads} threads"
    columns = ["arm", "turns/s", "of engine.run", "seconds", "texts differing"]
    report.tables = [table(title, columns, rows)]
    return report
