"""End to end: agents with long private prefixes speak in turn, under every policy, with room for a
quarter of their state; beside transformers' continuous batching on the same model.

Dummy weights. An agent's first turn is not counted: it computes the prefix. Arms run turns until
their share of the time is over, one at least.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.bench import Bench, Compilations, SkipError
from benchmarks.gpu.report import Table
from scalesim.batch import LaunchedStep, Runner, StepOutput
from scalesim.config import EngineConfig, SchedulerConfig
from scalesim.core import Int32s
from scalesim.engine.build import parts_for
from scalesim.engine.engine import Engine
from scalesim.memory.eviction.policies import ENGINE_POLICIES
from scalesim.memory.geometry import PageGeometry
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.checkpoint.loader import LoadedModel, load_model
from scalesim.model.layers.rope import RopeConfig
from scalesim.model.runner.cuda_runner import CudaRunner
from scalesim.model.runner.several_models import ModelRunners
from scalesim.requests.call import Call
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams
from tests.model_folders import write_config

ROPE = RopeConfig(500000.0, "llama3", 8.0, 1.0, 4.0, 8192)
LLAMA_1B = ModelConfig(
    architecture="LlamaForCausalLM", vocab_size=128256, hidden_size=2048, intermediate_size=8192,
    num_layers=16, num_heads=32, num_kv_heads=8, head_dim=64, max_position=131072, rms_eps=1e-5,
    rope=replace(ROPE, factor=32.0), tie_embeddings=True, dtype="bfloat16",
)  # fmt: skip
LLAMA_8B = replace(
    LLAMA_1B, hidden_size=4096, intermediate_size=14336, num_layers=32, head_dim=128, rope=ROPE,
    tie_embeddings=False,
)  # fmt: skip
TINY = ModelConfig(
    architecture="LlamaForCausalLM", vocab_size=300, hidden_size=64, intermediate_size=128,
    num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, max_position=1024, rms_eps=1e-5,
    rope=RopeConfig(),
)  # fmt: skip
QUARTER = 0.25
FIRST_ARMS = (("deadline", False), ("lru-swap", False), ("resident", False), ("deadline", True))
ARMS = (  # (policy, reproducible), by worth
    *FIRST_ARMS,
    *((policy, False) for policy in ENGINE_POLICIES if (policy, False) not in FIRST_ARMS),
)
MAX_OUTSIDE = 0.1


@dataclass(frozen=True)
class Setting:
    """``agents`` in turn order, ``running`` of them at once."""

    model: str
    config: ModelConfig
    prefix: int
    agents: int
    running: int = 16
    new: int = 32
    output: int = 32
    turns: int = 6
    arm_s: float = 8.0

    @property
    def max_len(self) -> int:
        return self.prefix + self.turns * (self.new + self.output)


SETTINGS = (
    Setting("8B", LLAMA_8B, 2048, 64),
    Setting("1B", LLAMA_1B, 2048, 64),
    Setting("1B", LLAMA_1B, 8192, 48),
    Setting("8B", LLAMA_8B, 8192, 32),
)
TINY_SETTINGS = (Setting("tiny", TINY, 150, 12, running=2, new=6, output=4, turns=3, arm_s=0.0),)


@dataclass
class Played:
    """One arm: seconds of the counted turns, and what happened in them."""

    turns_s: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class Watch:
    """A runner whose compute time is added up."""

    def __init__(self, inner: Runner) -> None:
        self.steps_in_flight = inner.steps_in_flight
        self.inner, self.compute_s, self.num_steps, self.num_decode_steps = inner, 0.0, 0, 0

    def launch(self, batch: Any) -> LaunchedStep:
        self.num_steps += 1
        self.num_decode_steps += batch.num_tokens == batch.num_seqs
        return self.inner.launch(batch)

    def collect(self, step: LaunchedStep) -> StepOutput:
        output = self.inner.collect(step)
        self.compute_s += output.compute_s
        return output


def own_runner(runner: Runner) -> CudaRunner:
    """The runner of an engine's own model."""
    assert isinstance(runner, ModelRunners) and isinstance(runner.own, CudaRunner)
    return runner.own


def large(bench: Bench) -> None:
    """The 8B model. On a CPU the small one below stands for both."""
    if not bench.on_gpu:
        raise SkipError("an 8B model needs a GPU")
    play_settings(bench, [setting for setting in SETTINGS if setting.model == "8B"])


def small(bench: Bench) -> None:
    """The 1B model."""
    play_settings(
        bench,
        [setting for setting in SETTINGS if setting.model == "1B"] if bench.on_gpu
        else TINY_SETTINGS,
    )  # fmt: skip


def play_settings(bench: Bench, settings: Sequence[Setting]) -> None:
    table = bench.report.table(
        "Agent turns at 25 % residency",
        ["model", "prefix", "agents", "arm", "turns/s", "TTFT p50 ms", "TTFT p95 ms", "peak GB",
         "demand loads", "GB moved", "compute share"],
    )  # fmt: skip
    loaded = None
    for setting in settings:
        what = f"{setting.model}, prefix {setting.prefix}"
        try:
            bench.need_s(20.0, what)
            loaded = loaded or dummy(bench, setting.config)
            measure(bench, setting, loaded, table)
        except SkipError as skipped:
            bench.report.leave_out(what, skipped)


def measure(bench: Bench, setting: Setting, loaded: LoadedModel, table: Table) -> None:
    for policy, reproducible in ARMS:
        arm = policy + ", reproducible" * reproducible
        what = f"{setting.model}, prefix {setting.prefix}, {arm}"
        try:
            bench.need_s(2.5 * setting.arm_s, what)
            played = play(bench, setting, loaded, policy, reproducible)
        except SkipError as skipped:
            bench.report.leave_out(what, skipped)
            continue
        table.add(*line(setting, arm, played))
    what = f"{setting.model}, prefix {setting.prefix}, transformers generate_batch"
    try:
        bench.need_s(3.0 * setting.arm_s, what)
        table.add(*line(setting, "generate_batch", peer(bench, setting, loaded)))
    except SkipError as skipped:
        bench.report.leave_out(what, skipped)
    if setting in (SETTINGS[1], TINY_SETTINGS[0]):
        step_overhead(bench, setting, loaded)


def line(setting: Setting, arm: str, played: Played) -> list[Any]:
    first = 1e3 * np.array(played.first_token_s or [float("nan")])
    rate = setting.agents * len(played.turns_s) / sum(played.turns_s)
    facts = [
        played.facts.get(name, "") for name in ("peak_gb", "demand_loads", "moved_gb", "share")
    ]
    p50, p95 = (float(np.percentile(first, q)) for q in (50, 95))
    return [setting.model, setting.prefix, setting.agents, arm, rate, p50, p95, *facts]


def dummy(bench: Bench, config: ModelConfig) -> LoadedModel:
    """Random weights, made where they are used."""
    with tempfile.TemporaryDirectory() as folder:
        write_config(Path(folder), config)
        return load_model(folder, dummy_weights=True, place=bench.place)


def settings_for(
    bench: Bench, setting: Setting, loaded: LoadedModel, policy: str, reproducible: bool = False
) -> EngineConfig:
    shape = loaded.config
    geometry = PageGeometry.choose(
        shape.num_layers, shape.num_kv_heads, shape.head_dim, loaded.model.dtype.itemsize
    )
    pages = setting.agents * geometry.blocks_for(setting.max_len)
    host_bytes = pages * geometry.page_bytes
    if host_bytes > bench.free_host_bytes():
        raise SkipError(f"a host pool of {host_bytes} bytes")
    least = setting.running * geometry.blocks_for(setting.max_len) + 1
    return EngineConfig(
        device=bench.place,
        device_memory=max(int(QUARTER * pages) + 1, least) * geometry.page_bytes,
        host_memory=host_bytes,
        policy=policy,
        reproducible=reproducible,
        max_model_len=setting.max_len,
        scheduler=SchedulerConfig(
            max_num_seqs=setting.running, max_num_batched_tokens=8192 if bench.on_gpu else 64
        ),
    )


@contextmanager
def engine_for(
    bench: Bench, loaded: LoadedModel, config: EngineConfig
) -> Iterator[tuple[Engine, Watch]]:
    """An engine whose own device queues are the benchmark's where there is no GPU."""
    gc.collect()  # the last arm's pools
    device = None if bench.on_gpu else bench.device
    kernels = bench.kernels(reproducible=config.reproducible)
    parts = parts_for(loaded, config, kernels, device=device)
    watch = Watch(parts.runner)
    with Engine(replace(parts, runner=watch)) as engine:
        yield engine, watch


def play(
    bench: Bench, setting: Setting, loaded: LoadedModel, policy: str, reproducible: bool
) -> Played:
    config = settings_for(bench, setting, loaded, policy, reproducible)
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    played = Played()
    with engine_for(bench, loaded, config) as (engine, watch):
        texts = histories(setting, loaded.config.vocab_size, bench.seed)
        one_turn(engine, setting, texts, 0, Played())
        runner = own_runner(watch.inner)
        counters, captures = engine.parts.memory.counters, runner.graphs.num_captures
        moved, compute_s = counters.loaded_pages + counters.saved_pages, watch.compute_s
        loads, until_s = counters.demand_loads, time.perf_counter() + setting.arm_s
        with Compilations() as compiled:
            for turn in range(1, setting.turns):
                one_turn(engine, setting, texts, turn, played)
                if time.perf_counter() > until_s:
                    break
        moved = counters.loaded_pages + counters.saved_pages - moved
        page_bytes = engine.parts.memory.residency.page_bytes
        peak = torch.cuda.max_memory_allocated() if bench.on_gpu else 0
        played.facts = {
            "peak_gb": peak / 1e9,
            "demand_loads": counters.demand_loads - loads,
            "moved_gb": moved * page_bytes / 1e9,
            "share": (watch.compute_s - compute_s) / sum(played.turns_s),
        }
        serving = (compiled.count or 0) + runner.graphs.num_captures - captures
        what = f"compilations while serving, {setting.model}, {setting.prefix}, {policy}"
        bench.report.hold("floor", what, serving, most=0)
        bench.report.hold("floor", what.replace("compilations", "host waits to launch"),
                          runner.num_waits, most=0)  # fmt: skip
        if compiled.count is None:
            bench.report.leave_out(what, "this Triton has no compilation listener")
    return played


def histories(setting: Setting, vocab_size: int, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, setting.prefix).tolist() for _ in range(setting.agents)]


def one_turn(
    engine: Engine, setting: Setting, texts: list[list[int]], turn: int, played: Played
) -> None:
    """All agents speak, in order; each is expected again after the others."""
    rng = np.random.default_rng(1000 + turn)
    params = SamplingParams(setting.output, temperature=0.0, ignore_eos=True)
    for agent, text in enumerate(texts):
        engine.agent(agent)
        text += rng.integers(0, engine.model.vocab_size, setting.new).tolist()
    start = time.perf_counter()
    engine.tick()
    engine.expect({agent: 1 + agent / setting.agents for agent in range(setting.agents)})
    calls: list[Call] = []
    waiting: dict[int, Call] = {}
    while len(calls) < setting.agents or not all(call.done for call in calls):
        # an agent calls when its turn has come: as many are open as may run, and some wait
        while len(calls) < setting.agents and len(waiting) < 2 * setting.running:
            agent = len(calls)
            call = engine.submit(Request(np.array(texts[agent], np.int32), agent, params))
            calls.append(call)
            waiting[agent] = call
        engine.step()
        spoke(engine, waiting, played.first_token_s)
    played.turns_s.append(time.perf_counter() - start)
    for text, call in zip(texts, calls, strict=True):
        text += call.result().token_ids


def spoke(engine: Engine, waiting: dict[int, Call], first_token_s: list[float]) -> None:
    """Note the calls whose first token is known now."""
    known = engine.parts.scheduler.slots.known
    for agent, call in list(waiting.items()):
        sequence = call.sequence
        running = sequence is not None and sequence.lease is not None
        if call.done or (
            running and sequence is not None and known[sequence.slot] > sequence.prompt_len
        ):
            first_token_s.append(time.monotonic() - call.submitted_s)
            del waiting[agent]


def step_overhead(bench: Bench, setting: Setting, loaded: LoadedModel) -> None:
    """A full batch decodes, nothing is moved: how much of the time no kernel ran."""
    config = replace(settings_for(bench, setting, loaded, "resident"), policy="resident")
    params = SamplingParams(256, temperature=0.0, ignore_eos=True)
    config = replace(config, max_model_len=min(1024, loaded.config.max_position))
    with engine_for(bench, loaded, config) as (engine, watch):
        prompts = np.random.default_rng(0).integers(0, 300, (setting.running, 512), np.int32)
        calls = [engine.submit(Request(row, None, params)) for row in prompts]
        while watch.num_decode_steps < 20:
            engine.step()
        start, compute_s, first = time.perf_counter(), watch.compute_s, watch.num_steps
        while watch.num_steps < first + 200:
            engine.step()
        seconds, compute_s = time.perf_counter() - start, watch.compute_s - compute_s
        for call in calls:
            engine.cancel(call)
        engine.step()
    bench.report.figures["decode_step_1b_s"] = seconds / 200
    outside = 1 - compute_s / seconds
    bench.report.hold("goal", "1B decode step outside kernels", outside, most=MAX_OUTSIDE)


def peer(bench: Bench, setting: Setting, loaded: LoadedModel) -> Played:
    """transformers' continuous batching on a model of the same shape: each turn from scratch."""
    try:
        from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig
    except ImportError as error:
        raise SkipError("transformers is not installed") from error
    if not bench.on_gpu:
        raise SkipError("generate_batch needs a GPU")
    shape = loaded.config
    gc.collect()
    torch.cuda.empty_cache()
    try:
        config = LlamaConfig(
            vocab_size=shape.vocab_size, hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size, num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads, num_key_value_heads=shape.num_kv_heads,
            head_dim=shape.head_dim, max_position_embeddings=shape.max_position,
            tie_word_embeddings=shape.tie_embeddings,
        )  # fmt: skip
        with torch.device(bench.place):
            model: Any = AutoModelForCausalLM.from_config(
                config, dtype=torch.bfloat16, attn_implementation="sdpa"
            )
        prompts: list[Int32s] = [
            np.array(text, np.int32) for text in histories(setting, shape.vocab_size, bench.seed)
        ]
        generation = GenerationConfig(
            max_new_tokens=setting.output, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        inputs = [prompt.tolist() for prompt in prompts]
        model.generate_batch(inputs[:2], generation_config=generation, progress_bar=False)
        played, seconds = Played(), []
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            start = time.perf_counter()
            model.generate_batch(inputs, generation_config=generation, progress_bar=False)
            seconds.append(time.perf_counter() - start)
            if bench.left_s() < 2 * seconds[-1]:
                break
        played.turns_s = [statistics.median(seconds)]
        played.facts = {"peak_gb": torch.cuda.max_memory_allocated() / 1e9}
        return played
    except Exception as error:  # another project's interface, of an unknown version
        raise SkipError(f"generate_batch failed: {type(error).__name__}: {error}"[:300]) from error
    finally:
        gc.collect()
