"""Several models in one pool: six models in memory for two, by policy, and what pages cost a model.

Agents of six small Llamas of random weights call in ticks, all of a tick on one model or two; the
simulation says who is next. The link is slowed, so that loading a model takes the share of a tick
that ``--link`` says: the weights of a model of 0.5 B in bf16 over PCIe 5 take about 20 ms, and 32
tokens of a batch about 150 ms there. Arms take turns, round by round, and must say the same. Where
the link's schedule (``link_schedule``) does not come up to 0.9 of ``resident``, it counts instead.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.link_schedule import Turn, scheduled_s
from benchmarks.paged_linears import linears
from benchmarks.report import Report, table
from scalesim.engine.engine import Engine
from scalesim.memory.counters import Counters
from scalesim.memory.geometry import PageGeometry
from scalesim.memory.tree.segment import Segment
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.layers.rope import RopeConfig
from scalesim.model.paged_weights import WeightLayout
from tests.model_folders import write_dummy_model

POLICIES = ("resident", "deadline", "lru-swap", "lru-recompute")
NUM_MODELS, IN_MEMORY = 6, 2
PROMPT, OUTPUT = 96, 16
LEAST_OF_ROOF = 0.9
EQUAL = 0.02  # rates of rounds that differ by less are called equal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--agents", type=int, default=8, help="of each model")
    parser.add_argument("--ticks", type=int, default=12, help="in each round")
    parser.add_argument("--rounds", type=int, default=3, help="of each arm, behind one to warm up")
    parser.add_argument(
        "--link", type=float, nargs="+", default=[0.13, 1.0],
        help="time to load a model, as a share of a tick's computing",
    )  # fmt: skip


def shape(options: argparse.Namespace) -> ModelConfig:
    hidden = 64 if options.quick else 256
    return ModelConfig(
        architecture="LlamaForCausalLM", vocab_size=1024, hidden_size=hidden,
        intermediate_size=3 * hidden, num_layers=2 if options.quick else 6, num_heads=hidden // 32,
        num_kv_heads=2, head_dim=32, max_position=1024, rms_eps=1e-6, rope=RopeConfig(),
    )  # fmt: skip


def run(options: argparse.Namespace) -> Report:
    report, config = Report("models"), shape(options)
    linears(report, config, 2 if options.quick else 15)
    with tempfile.TemporaryDirectory() as place:
        folders = [
            write_dummy_model(Path(place) / f"model {number}", config, seed=number)
            for number in range(NUM_MODELS)
        ]
        for order in ("cyclic", "skewed"):
            for link in options.link[:1] if options.quick else options.link:
                compare(report, options, config, folders, order, link)
    return report


# -- six models -----------------------------------------------------------------------------------


@dataclass
class Arm:
    """An engine of one policy, and what it has said and taken so far."""

    engine: Engine
    rounds: list[float] = field(default_factory=list)  # seconds
    total_s: float = 0.0  # of all rounds
    runs_s: float = 0.0  # of these, to find or make runs of consecutive pages
    first_token_s: list[float] = field(default_factory=list)
    num_demanded: int = 0
    num_calls: int = 0
    texts: list[tuple[int, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        compaction = self.engine.parts.memory.residency.compaction
        take_run = compaction.take_run

        def timed(length: int, held: Collection[Segment] = ()) -> list[int] | None:
            start = time.perf_counter()
            run = take_run(length, held)
            self.runs_s += time.perf_counter() - start
            return run

        compaction.take_run = timed  # type: ignore[method-assign]


def compare(
    report: Report, options: argparse.Namespace, config: ModelConfig, folders: list[Path],
    order: str, link: float,
) -> None:  # fmt: skip
    agents, ticks = (2, 4) if options.quick else (options.agents, options.ticks)
    rounds = 1 if options.quick else options.rounds
    layout = WeightLayout(config, torch.float32, page_bytes_of(config))
    weights = sum(layout.runs)
    kv_pages = agents * (-(-(PROMPT + OUTPUT) // 16) + 1)
    load_s = link * one_tick_s(folders, agents) / weights  # of a page
    pages = IN_MEMORY * (weights + kv_pages)
    memory = pages * layout.page_bytes, layout.page_bytes / load_s
    arms = {policy: Arm(engine_of(policy, folders, agents, *memory)) for policy in POLICIES}
    try:
        for number in range(rounds + 1):  # the first warms up
            print(f"{order}, link {link:g}: round {number}", file=sys.stderr, flush=True)
            for arm in arms.values():
                play(arm, order, agents, ticks, number)
    finally:
        for arm in arms.values():
            arm.engine.close()
    same = all(arm.texts == arms["resident"].texts for arm in arms.values())
    tick_s = statistics.median(arms["resident"].rounds) / ticks
    turns = [
        Turn(model, weights + agents * (PROMPT // 16), tick_s)
        for number in range(1, rounds + 1)
        for model in models_of(order, ticks, number)
    ]
    schedule = len(turns) * agents / scheduled_s(turns, pages, load_s)
    title = f"{order}, loading a model takes {link:g} of a tick"
    show(report, title, arms, ticks * agents, schedule, same)


def page_bytes_of(config: ModelConfig) -> int:
    return PageGeometry.choose(
        config.num_layers, config.num_kv_heads, config.head_dim, 4
    ).page_bytes


def engine_of(
    policy: str, folders: list[Path], agents: int, device_bytes: int, bandwidth: float
) -> Engine:
    """The engine's own model is the first, which no agent uses: it holds six more beside it."""
    engine = Engine(
        folders[0], policy=policy, device_memory=device_bytes, host_memory="2GB",
        link_bandwidth=bandwidth if policy != "resident" else None, max_num_seqs=64,
    )  # fmt: skip
    for number, folder in enumerate(folders):
        engine.add_model(f"model {number}", folder)
        for agent in range(agents):
            engine.agent(f"{number}.{agent}", model=f"model {number}")
    return engine


def one_tick_s(folders: list[Path], agents: int) -> float:
    """What a tick computes when nothing has to move."""
    arm = Arm(engine_of("resident", folders, agents, 0, 1e12))
    with arm.engine:
        for number in range(2):
            play(arm, "cyclic", agents, NUM_MODELS, number)
    return arm.rounds[-1] / NUM_MODELS


def play(arm: Arm, order: str, agents: int, ticks: int, number: int) -> None:
    """A round: in each tick, all agents of one model call. Who calls when is known."""
    engine, turns = arm.engine, models_of(order, ticks, number)
    before = engine.parts.memory.counters.demand_loads
    start = time.perf_counter()
    for tick, model in enumerate(turns):
        for text, first_token_s in asyncio.run(heard(engine, model, agents)):
            arm.texts.append(text)
            if number:
                arm.first_token_s.append(first_token_s)
        later = turns[tick + 1 :]
        engine.expect({
            f"{other}.{agent}": 1.0 + (later.index(other) if other in later else ticks)
            for other in range(NUM_MODELS)
            for agent in range(agents)
        })  # fmt: skip
        engine.tick()
        arm.num_calls += agents
    took = time.perf_counter() - start
    if number:
        arm.rounds.append(took)
    arm.total_s += took
    arm.num_demanded += engine.parts.memory.counters.demand_loads - before


def models_of(order: str, ticks: int, number: int) -> list[int]:
    """The model of each tick of round ``number``."""
    rng = random.Random(number)
    if order == "cyclic":
        return [tick % NUM_MODELS for tick in range(ticks)]
    return [min(int(rng.expovariate(0.7)), NUM_MODELS - 1) for _ in range(ticks)]


async def heard(engine: Engine, model: int, agents: int) -> list[tuple[tuple[int, ...], float]]:
    """What all agents of ``model`` say, and the seconds to their first tokens."""
    start = time.perf_counter()

    async def listen(agent: int) -> tuple[tuple[int, ...], float]:
        stream = engine.agent(f"{model}.{agent}").stream_async(
            prompt_of(model, agent), max_tokens=OUTPUT, temperature=0.0, ignore_eos=True
        )
        last, first_token_s = await anext(stream), time.perf_counter() - start
        async for piece in stream:
            last = piece
        assert last.reply is not None
        return last.reply.token_ids, first_token_s

    return await asyncio.gather(*map(listen, range(agents)))


def prompt_of(model: int, agent: int) -> list[int]:
    rng = np.random.default_rng((model, agent))
    found: list[int] = rng.integers(0, 1024, PROMPT).tolist()
    return found


def show(
    report: Report, title: str, arms: dict[str, Arm], calls: int, schedule: float, same: bool
) -> None:
    """``calls``: of a round; ``schedule``: turns a second of the link's schedule."""
    rates = {policy: calls / statistics.median(arm.rounds) for policy, arm in arms.items()}
    rows = []
    for policy, arm in arms.items():
        counters: Counters = arm.engine.parts.memory.counters
        p50, p95 = np.percentile(arm.first_token_s, [50, 95])
        rows.append([
            policy, f"{rates[policy]:.1f}", f"{rates[policy] / rates['resident']:.2f}",
            f"{arm.num_demanded / arm.num_calls:.2f}", f"{1e3 * p50:.0f}", f"{1e3 * p95:.0f}",
            f"{counters.loaded_pages + counters.read_pages}", f"{counters.compacted_pages}",
            f"{arm.runs_s / arm.total_s:.1%}",
        ])  # fmt: skip
    columns = ["policy", "turns/s", "÷ resident", "loads waited for, a call", "TTFT p50", "p95, ms",
               "pages loaded", "moved", "finding runs"]  # fmt: skip
    report.tables.append(
        table(f"{NUM_MODELS} models in memory for {IN_MEMORY}: {title}", columns, rows)
    )
    report.figures[title] = {"rates": rates, "same": same}
    best, roof = rates["deadline"], rates["resident"]
    if schedule >= LEAST_OF_ROOF * roof:
        report.verdict(f"{title}: ÷ resident", best / roof, least=LEAST_OF_ROOF)
    else:
        report.verdict(f"{title}: of the link's schedule", best / schedule, least=LEAST_OF_ROOF)
        report.notes.append(f"{title}: the link's schedule gives {schedule / roof:.2f} of resident")
    report.verdict(f"{title}: ÷ lru-swap", best / rates["lru-swap"], least=1.0 - EQUAL)
    if math.isclose(best, rates["lru-swap"], rel_tol=EQUAL):
        report.notes.append(f"{title}: deadline and lru-swap are equal within {EQUAL:.0%}")
    said = "the same texts" if same else "OTHER TEXTS"
    report.notes.append(f"{title}: {said} under all policies")
