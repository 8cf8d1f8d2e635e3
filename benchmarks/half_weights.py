"""What it gives that a CPU holds the matrices of a checkpoint in bf16 in 16 bits, and computes in
fp32.

One checkpoint of random weights in bf16, held in both ways by engines that take turns: 16 bits, and
32. Agents of a number speak at once: first with their prompts, then a turn more, which is decoding
mostly. All texts must be equal.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scalesim_kernels import select
from scalesim_kernels.cpu import pack_and_ask

from benchmarks.report import Report, num_cores, table
from scalesim.config import EngineConfig
from scalesim.engine.build import parts_for
from scalesim.engine.engine import Engine
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.checkpoint.loader import load_model
from scalesim.model.layers.rope import RopeConfig
from tests.model_folders import write_dummy_model

MODEL = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=32_000,
    hidden_size=768,
    intermediate_size=2048,
    num_layers=16,
    num_heads=12,
    num_kv_heads=4,
    head_dim=64,
    max_position=2048,
    rms_eps=1e-5,
    rope=RopeConfig(),
    dtype="bfloat16",
    tie_embeddings=True,
)  # 125 M parameters
TINY = replace(MODEL, vocab_size=512, num_layers=2, hidden_size=256, intermediate_size=512)
ARMS = ("16 bits", "32 bits")
PHASES = ("first turn", "next turn")
AGENTS = (1, 4, 16)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--agents", type=int, nargs="+", default=AGENTS, help="numbers that speak at once")
    add("--prompt", type=int, default=64, help="tokens of each prompt")
    add("--new", type=int, default=8, help="tokens that the next turn adds")
    add("--output", type=int, default=32, help="tokens that each turn generates")
    add("--rounds", type=int, default=3)
    add("--cpu-time", action="store_true", help="time by processor time: on a busy machine")
    add("--threads", type=int, default=num_cores(), help="of torch")


def run(options: argparse.Namespace) -> Report:
    if options.quick:
        vars(options).update(agents=[1, 7], prompt=16, output=4, rounds=1)
    torch.set_num_threads(options.threads)
    report, kernels = Report("half-weights"), select("cpu")
    forms = (kernels, replace(kernels, pack_weight=pack_and_ask))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        loaded = load_model(write_dummy_model(Path(folder), TINY if options.quick else MODEL))
        config = EngineConfig(device_memory="1GB", host_memory=0, threads=options.threads)
        engines = [stack.enter_context(Engine(parts_for(loaded, config, one))) for one in forms]
        rows, differing = [], 0
        for count in options.agents:
            took: dict[tuple[str, str], list[float]] = {}
            for number in range(options.rounds + 1):
                plays = [play(engine, options, count, number) for engine in engines]
                differing += plays[0][1] != plays[1][1]
                for arm, (seconds, _) in zip(ARMS, plays, strict=True):
                    for phase, one in zip(PHASES, seconds, strict=True):
                        if number:  # the first warms up
                            took.setdefault((phase, arm), []).append(one)
            for phase in PHASES:
                rates = [count / statistics.median(took[phase, arm]) for arm in ARMS]
                report.figures[f"{phase}/{count}"] = dict(zip(ARMS, rates, strict=True))
                gain = rates[0] / rates[1]
                rows.append([phase, str(count), *(f"{rate:.2f}" for rate in rates), f"{gain:.2f}"])
                if count == 1 and phase == "next turn":
                    report.verdict("16 bits over 32, one agent, turns/s", gain, least=1.5)
    report.verdict("rounds in which a text differs", differing, most=0)
    columns = ["", "agents at once", *(f"{arm}, turns/s" for arm in ARMS), "ratio"]
    report.tables.append(table("Matrices in bf16, held in 16 bits and in 32", columns, rows))
    return report


def play(
    engine: Engine, options: argparse.Namespace, count: int, number: int
) -> tuple[list[float], list[Any]]:
    """Seconds of the first and of the next turn of ``count`` new agents, and what they said."""
    rng = np.random.default_rng([options.seed, count, number])
    agents = [engine.agent(f"{count}/{number}/{index}") for index in range(count)]
    texts = [rng.integers(0, 512, options.prompt, np.int32) for _ in agents]
    seconds, said = [], []
    clock = time.process_time if options.cpu_time else time.perf_counter
    for _ in PHASES:
        start = clock()
        replies = engine.run(
            [
                agent.request(text, max_tokens=options.output, temperature=0.0, ignore_eos=True)
                for agent, text in zip(agents, texts, strict=True)
            ]
        )
        seconds.append(clock() - start)
        said += [list(reply.token_ids) for reply in replies]
        more = [rng.integers(0, 512, options.new, np.int32) for _ in agents]
        texts = [
            np.concatenate([text, np.array(reply.token_ids, np.int32), new])
            for text, reply, new in zip(texts, replies, more, strict=True)
        ]
    for agent in agents:
        agent.forget()
    return seconds, said
