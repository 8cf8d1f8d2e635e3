"""What reading along costs: processor time a token of a streamed call, above a call that waits.

The stub runner: its model costs nothing, so what is left is the engine and the reader. All arms
make the same calls and must give the same texts; a byte tokenizer makes them. The time is the whole
process's, reader included. Arms take turns; medians are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.report import Report, table
from benchmarks.stub_engine import BLOCK_SIZE, StubSettings, stub_parts
from scalesim.engine.engine import Engine
from scalesim.model.text.tokenizer import ByteTokenizer
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams
from scalesim.testing.tag_runner import StubRunner

QUICK: dict[str, Any] = {"calls": 4, "output": 40, "rounds": 1}
TARGET_US = 50.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--calls", type=int, default=64, help="streams at a time")
    add("--output", type=int, default=400, help="tokens that each call generates")
    add("--rounds", type=int, default=9, help="how often each arm runs")
    add("--stop", type=int, default=0, help="stop strings of each call, which never come")


def make_requests(options: argparse.Namespace, turn: int) -> list[Request]:
    rng = np.random.default_rng([options.seed, turn])
    stop = tuple(f"<never-{index}>" for index in range(options.stop))
    params = SamplingParams(max_tokens=options.output, ignore_eos=True, stop=stop)
    prompts = rng.integers(0, 256, (options.calls, 24), np.int32)
    return [Request(prompt, params=params) for prompt in prompts]


def new_engine(options: argparse.Namespace) -> Engine:
    max_len = options.output + 64
    pages = 2 * options.calls * -(-max_len // BLOCK_SIZE)
    parts = stub_parts(StubSettings(pages, 0, options.calls, 4096, max_len, "deadline", step_s=0.0))
    model = replace(parts.model, tokenizer=ByteTokenizer())
    return Engine(replace(parts, runner=StubRunner(256), model=model))


def waiting(engine: Engine, requests: list[Request]) -> list[Any]:
    return [reply.text for reply in engine.run(requests)]  # type: ignore[union-attr]


def streaming(engine: Engine, requests: list[Request]) -> list[Any]:
    """One reader that goes round the streams, as a thread with many would."""
    streams = [engine.stream(request) for request in requests]
    texts = [""] * len(streams)
    open_ones = list(enumerate(streams))
    while open_ones:
        for index, stream in open_ones:
            texts[index] += next(stream).text
        open_ones = [(i, stream) for i, stream in open_ones if stream.reply is None]
    return texts


def streaming_async(engine: Engine, requests: list[Request]) -> list[Any]:
    async def read(request: Request) -> str:
        return "".join([piece.text async for piece in engine.stream_async(request)])

    async def everything() -> list[str]:
        return await asyncio.gather(*map(read, requests))

    return asyncio.run(everything())


ARMS: dict[str, Callable[[Engine, list[Request]], list[Any]]] = {
    "run": waiting,
    "stream": streaming,
    "stream_async": streaming_async,
}


def run(options: argparse.Namespace) -> Report:
    if options.quick:
        vars(options).update(QUICK)
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    differing = dict.fromkeys(ARMS, 0)
    for turn in range(options.rounds):
        requests = make_requests(options, turn)
        texts: dict[str, list[Any]] = {}
        names = list(ARMS)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            with new_engine(options) as engine:
                start = time.process_time()
                texts[name] = ARMS[name](engine, requests)
                seconds[name].append(time.process_time() - start)
                assert engine.stats.output_tokens == options.calls * options.output
        for name in ARMS:
            pairs = zip(texts[name], texts["run"], strict=True)
            differing[name] += sum(one != other for one, other in pairs)
    report = Report("streaming")
    tokens = options.calls * options.output
    base = statistics.median(seconds["run"])
    rows = []
    for name, times in seconds.items():
        median = statistics.median(times)
        added = (median - base) / tokens * 1e6
        rows.append([name, f"{median / tokens * 1e6:.1f}", f"{added:.1f}",
                     f"{min(times):.3f}-{max(times):.3f}", str(differing[name])])  # fmt: skip
        report.figures[name] = {"seconds": times, "us_per_token_above_run": added}
        if name != "run":
            report.verdict(f"{name}: added a token", added, most=TARGET_US, unit=" µs")
            report.verdict(f"{name}: texts that differ", differing[name], most=0)
    title = f"Processor time, {options.calls} calls of {options.output} tokens at a time"
    columns = ["arm", "µs/token", "above run", "seconds", "texts differing"]
    report.tables = [table(title, columns, rows)]
    return report
