"""What HTTP costs: the server beside a bare endpoint, beside the engine in process, and overloaded.

Throughput: the server on an engine whose tokens are there at once, against a bare starlette
endpoint that streams the same 64 chunks; requests per second of processor time, because another
process is the client. Latency: time to the first token over HTTP less the same in process, while
other calls stream. Overload: a hundred times what the server can do, on a few places.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from benchmarks.http_load import Load
from benchmarks.report import Report, table
from benchmarks.stub_engine import BLOCK_SIZE, StubSettings, stub_parts
from scalesim.batch import Batch, LaunchedStep
from scalesim.engine.engine import Engine
from scalesim.model.text.tokenizer import ByteTokenizer
from scalesim.requests.reply import Reply, Usage
from scalesim.requests.request import Request
from scalesim.requests.stream import TextPiece
from scalesim.sampling.params import SamplingParams
from scalesim.server.app import make_app
from scalesim.server.config import ServerConfig, ServerLimits
from scalesim.server.listen import Server
from scalesim.testing.tag_runner import StubRunner

QUICK: dict[str, Any] = {
    "requests": 64, "rounds": 1, "streams": 8, "probes": 5, "overload_s": 1.0, "step_ms": 5.0,
}  # fmt: skip
CHUNKS = 64
PLACES, CALL_S = 8, 0.4
BODY = {"prompt": "x" * 200, "max_tokens": CHUNKS, "stream": True}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--requests", type=int, default=2048, help="streams of 64 chunks in each round")
    add("--rounds", type=int, default=5, help="how often each arm runs")
    add("--streams", type=int, default=256, help="calls that stream while latency is measured")
    add("--probes", type=int, default=100, help="calls whose latency is measured")
    add("--step-ms", type=float, default=25.0, help="what a step takes, for latency")
    add("--overload-s", type=float, default=60.0, help="how long the server is overloaded")


class ReadyStream:
    """A reply whose tokens are there already."""

    def __init__(self, pieces: list[TextPiece]) -> None:
        self._pieces = iter(pieces)

    def __aiter__(self) -> ReadyStream:
        return self

    async def __anext__(self) -> TextPiece:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration

    async def __aenter__(self) -> ReadyStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass


def engine_of(step_s: float, num_seqs: int, max_len: int = 512) -> Engine:
    """An engine without a model, a step of which takes ``step_s``."""
    pages = 2 * num_seqs * -(-max_len // BLOCK_SIZE)
    settings = StubSettings(pages, 0, num_seqs, 4096, max_len, "deadline", step_s=0.0)
    parts = stub_parts(settings)
    model = replace(parts.model, tokenizer=ByteTokenizer())
    return Engine(replace(parts, runner=PacedRunner(step_s), model=model))


class PacedRunner(StubRunner):
    """Says what the stub says, and takes its time."""

    def __init__(self, step_s: float) -> None:
        super().__init__(256)
        self._step_s = step_s

    def launch(self, batch: Batch) -> LaunchedStep:
        if self._step_s:
            time.sleep(self._step_s)
        return super().launch(batch)


def ready_engine() -> Engine:
    """An engine whose streams are ready: what remains is HTTP."""
    engine = engine_of(0.0, 4)
    usage = Usage(200, 0, CHUNKS, 0)
    reply = Reply(None, "x" * CHUNKS, (120,) * CHUNKS, "length", usage, 0.0)
    pieces = [TextPiece("x", (120,)) for _ in range(CHUNKS - 1)]
    pieces.append(TextPiece("x", (120,), reply))

    async def stream_samples_async(request: Request) -> list[ReadyStream]:
        return [ReadyStream(pieces)]

    engine.stream_samples_async = stream_samples_async  # type: ignore[method-assign, assignment]
    return engine


def bare_app() -> Starlette:
    """What the same bytes cost without a server around them."""
    choice = {"index": 0, "text": "x", "logprobs": None, "finish_reason": None}
    same = {"id": "cmpl-" + "0" * 32, "object": "text_completion", "created": 1, "model": "model"}
    chunk = b"data: " + json.dumps({**same, "choices": [choice]}).encode() + b"\n\n"

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(CHUNKS):
            yield chunk
        yield b"data: [DONE]\n\n"

    async def answer(request: HttpRequest) -> Response:
        json.loads(await request.body())
        return StreamingResponse(chunks(), media_type="text/event-stream")

    return Starlette(routes=[Route("/v1/completions", answer, methods=["POST"])])


@contextmanager
def served(server: uvicorn.Server) -> Iterator[int]:
    """The port of ``server``, which runs in a thread."""
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def bare_server() -> uvicorn.Server:
    config = uvicorn.Config(
        bare_app(), port=0, http="httptools", log_config=None, access_log=False, lifespan="off"
    )
    return uvicorn.Server(config)


def our_server(engine: Engine, **limits: Any) -> uvicorn.Server:
    config = ServerConfig(port=0, limits=ServerLimits(drain_timeout=1.0, **limits))
    return Server(make_app(engine, config), config)


def loaded(load: Load) -> dict[str, Any]:
    """What a client of its own process found."""
    program = Path(__file__).with_name("http_load.py")
    done = subprocess.run(
        [sys.executable, str(program)],
        input=json.dumps(asdict(load)), capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# -- throughput -----------------------------------------------------------------------------------


def throughput(options: argparse.Namespace, report: Report) -> None:
    load = Load(0, "/v1/completions", json.dumps(BODY), 16, requests=options.requests)
    rates: dict[str, list[float]] = {"bare": [], "server": []}
    wall: dict[str, list[float]] = {"bare": [], "server": []}
    with ready_engine() as engine:
        servers = {"bare": bare_server(), "server": our_server(engine)}
        with served(servers["bare"]) as bare, served(servers["server"]) as ours:
            ports = {"bare": bare, "server": ours}
            for turn in range(options.rounds + 1):
                for name in sorted(ports, reverse=turn % 2 == 0):
                    start = time.process_time()
                    found = loaded(replace(load, port=ports[name]))
                    used_s = time.process_time() - start
                    assert set(found["statuses"]) == {200}
                    if turn:  # the first round warms up
                        rates[name].append(len(found["statuses"]) / used_s)
                        wall[name].append(len(found["statuses"]) / found["wall_s"])
    ratio = statistics.median(
        ours / bare for ours, bare in zip(rates["server"], rates["bare"], strict=True)
    )
    rows = [
        [name, f"{statistics.median(rates[name]):.0f}", f"{statistics.median(wall[name]):.0f}"]
        for name in rates
    ]
    head = ["endpoint", "requests a processor second", "requests a second"]
    report.tables.append(table(f"Streams of {CHUNKS} chunks, 16 connections", head, rows))
    report.figures["throughput"] = {"per_cpu_s": rates, "per_s": wall, "ratio": ratio}
    report.verdict("requests a second, of the bare endpoint's", ratio, least=0.6)


# -- latency --------------------------------------------------------------------------------------


def latency(options: argparse.Namespace, report: Report) -> None:
    with engine_of(options.step_ms / 1000, options.streams + 4, 4096) as engine:
        inside = asyncio.run(probes_inside(engine, options))
        with served(our_server(engine)) as port:
            background = Load(
                port, "/v1/completions", json.dumps({**BODY, "max_tokens": 3000}),
                options.streams, requests=options.streams, seconds=600.0,
            )  # fmt: skip
            program = Path(__file__).with_name("http_load.py")
            client = subprocess.Popen([sys.executable, str(program)], stdin=subprocess.PIPE)
            assert client.stdin is not None
            client.stdin.write(json.dumps(asdict(background)).encode())
            client.stdin.close()
            try:
                time.sleep(3.0)
                body = json.dumps({**BODY, "max_tokens": 1})
                probe = Load(port, "/v1/completions", body, 1, requests=options.probes)
                over_http = loaded(probe)["last_s"]
            finally:
                client.kill()
                client.wait()
    rows = []
    for name, share, most in (("p50", 50, 2.0), ("p99", 99, 10.0)):
        ours, theirs = (float(np.percentile(x, share)) * 1000 for x in (over_http, inside))
        rows.append([name, f"{theirs:.2f}", f"{ours:.2f}", f"{ours - theirs:.2f}"])
        report.verdict(f"added to the first token, {name}", ours - theirs, most=most, unit=" ms")
    title = f"First token while {options.streams} calls stream, ms ({options.step_ms:g} ms a step)"
    report.tables.append(table(title, ["", "in process", "over HTTP", "added"], rows))
    report.figures["latency"] = {"inside_s": inside, "http_s": over_http}


async def probes_inside(engine: Engine, options: argparse.Namespace) -> list[float]:
    async def read(max_tokens: int) -> None:
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        async for _ in engine.stream_async(Request("x" * 200, params=params)):
            pass

    background = [asyncio.create_task(read(3000)) for _ in range(options.streams)]
    await asyncio.sleep(1.0)
    found = []
    for _ in range(options.probes):
        start = time.perf_counter()
        await read(1)
        found.append(time.perf_counter() - start)
    for task in background:
        task.cancel()
    await asyncio.gather(*background, return_exceptions=True)
    return found


# -- overload -------------------------------------------------------------------------------------


def overload(options: argparse.Namespace, report: Report) -> None:
    tokens = 16
    body = json.dumps({**BODY, "stream": False, "max_tokens": tokens})
    with (
        engine_of(CALL_S / tokens, PLACES) as engine,
        served(our_server(engine, max_open_requests=PLACES)) as port,
    ):
        load = Load(port, "/v1/completions", body, PLACES, seconds=max(2.0, options.overload_s / 6))
        unloaded = loaded(load)["last_s"]
        rate = 100 * PLACES / CALL_S
        crowd = replace(load, connections=256, rate=rate, seconds=options.overload_s / 6)
        loaded(crowd)  # buffers and caches are as large as they become
        before = resident_mib()
        found = loaded(replace(crowd, seconds=options.overload_s))
        grown = resident_mib() - before
    statuses = found["statuses"]
    assert set(statuses) <= {200, 429}, set(statuses)
    taken = [s for s, status in zip(found["last_s"], statuses, strict=True) if status == 200]
    refused = [s for s, status in zip(found["last_s"], statuses, strict=True) if status == 429]
    p99 = {
        name: float(np.percentile(times, 99)) * 1000
        for name, times in (("unloaded", unloaded), ("taken", taken), ("refused", refused))
    }
    report.verdict("overload: growth of memory", grown, most=32.0, unit=" MiB")
    report.verdict("overload: refusals, p99", p99["refused"], most=50.0, unit=" ms")
    report.verdict("overload: taken, p99 of unloaded", p99["taken"] / p99["unloaded"], most=2.0)
    rows = [[name, f"{value:.1f}"] for name, value in p99.items()]
    offered = len(statuses) / found["wall_s"]
    title = (
        f"{offered:.0f} requests a second for {options.overload_s:g} s, {PLACES} places: p99, ms"
    )
    report.tables.append(table(title, ["", "ms"], rows))
    report.figures["overload"] = {"p99_ms": p99, "grown_mib": grown, "offered_per_s": offered,
                                  "taken": len(taken), "refused": len(refused)}  # fmt: skip


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def run(options: argparse.Namespace) -> Report:
    if options.quick:
        vars(options).update(QUICK)
    report = Report("server")
    gc.collect()
    gc.freeze()  # as ``scalesim serve`` does once the model is loaded
    throughput(options, report)
    latency(options, report)
    overload(options, report)
    report.notes.append("The client is a process of its own; judge a shared machine by ratios.")
    return report
