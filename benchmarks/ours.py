"""Our engine's arms, on one loaded model; and the bare matrix products that no arm can do
without.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch
from scalesim_kernels import KernelSet, select

from benchmarks.dialogues import Dialogues, Played, Rates, Transcript
from scalesim.batch import Batch, LaunchedStep, Runner, StepOutput
from scalesim.config import EngineConfig, SchedulerConfig
from scalesim.core import Int32s
from scalesim.engine.build import parts_for
from scalesim.engine.engine import Engine
from scalesim.memory.geometry import PageGeometry
from scalesim.model.checkpoint.loader import LoadedModel
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams

ROW_MULTIPLE = 16  # what reproducible mode pads rows to on a CPU


@dataclass(frozen=True)
class Arm:
    """``pool``: the device pool as a share of all agents' state; ``resident`` ignores it.
    ``share``: of ``max_num_seqs``, how many may run at once."""

    policy: str
    pool: float = 1.0
    hints: bool = False
    reproducible: bool = True
    share: float = 1.0


class CountingRunner:
    """Another runner, its steps counted by (query tokens, sampled tokens)."""

    def __init__(self, inner: Runner) -> None:
        self.steps_in_flight = inner.steps_in_flight
        self.shapes: Counter[tuple[int, int]] = Counter()
        self.last: Batch | None = None
        self._inner = inner

    def launch(self, batch: Batch) -> LaunchedStep:
        self.shapes[batch.num_tokens, int(batch.sample.sum())] += 1
        self.last = batch
        return self._inner.launch(batch)

    def collect(self, step: LaunchedStep) -> StepOutput:
        return self._inner.collect(step)


class Ours:
    """Makes a fresh engine for every play; all arms share the weights and the settings given
    here."""

    def __init__(self, loaded: LoadedModel, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.loaded = loaded
        self.kernels = select("cpu")
        self.packed = loaded.model.packed(self.kernels).weights
        self.scheduler = SchedulerConfig(max_num_seqs, max_num_batched_tokens)

    def _engine(self, arm: Arm, dialogues: Dialogues) -> tuple[Engine, CountingRunner]:
        shape = self.loaded.config
        geometry = PageGeometry.choose(
            shape.num_layers, shape.num_kv_heads, shape.head_dim, self.loaded.model.dtype.itemsize
        )
        everything = dialogues.num_agents * geometry.blocks_for(dialogues.max_len)
        config = EngineConfig(
            device_memory=(int(arm.pool * everything) + 1) * geometry.page_bytes,
            host_memory=everything * geometry.page_bytes,
            policy=arm.policy,
            reproducible=arm.reproducible,
            scheduler=replace(
                self.scheduler, max_num_seqs=max(1, int(arm.share * self.scheduler.max_num_seqs))
            ),
        )
        parts = parts_for(self.loaded, config)
        pages = parts.memory.residency.device.num_usable
        if arm.policy == "resident" and pages < everything:
            raise MemoryError(
                f"the arm {arm.policy!r} would not be: its pool has {pages} pages of "
                f"{geometry.page_bytes} bytes, and all agents' state needs {everything}; "
                "free memory, or fewer --agents"
            )
        runner = CountingRunner(parts.runner)
        return Engine(replace(parts, runner=runner)), runner

    def play(self, dialogues: Dialogues, arm: Arm) -> Played:
        """All agents call in order, turn by turn. A hint says when an agent's next turn comes: a
        tick of the clock for each turn, the agents evenly spread over it."""
        engine, runner = self._engine(arm, dialogues)
        transcript = Transcript(dialogues)
        agents = range(dialogues.num_agents)
        params = SamplingParams(dialogues.output_len, temperature=0.0, ignore_eos=True)
        turn_s = []
        with engine:
            for agent in agents:
                engine.agent(agent)
            for turn in range(dialogues.num_turns):
                start = time.perf_counter()
                prompts = transcript.prompts(turn)
                requests = [Request(prompts[agent], agent, params) for agent in agents]
                if arm.hints:
                    engine.tick()
                    engine.expect({agent: 1 + agent / len(agents) for agent in agents})
                for agent, reply in enumerate(engine.run(requests)):
                    assert not isinstance(reply, Exception)
                    outputs = np.array([reply.token_ids], np.int32)
                    transcript.answer(turn, slice(agent, agent + 1), outputs)
                turn_s.append(time.perf_counter() - start)
            facts = self._facts(engine, runner, arm)
        return Played(turn_s, transcript.outputs(), facts)

    def _facts(self, engine: Engine, runner: CountingRunner, arm: Arm) -> dict[str, float]:
        stats, counters = engine.stats, engine.parts.memory.counters
        return {
            "steps": stats.steps,
            "compute_s": stats.compute_s,
            "floor_s": self.floor_s(runner.shapes, arm.reproducible),
            "stall_s": counters.stall_s,
            "cached_tokens": stats.cached_tokens,
            "prompt_tokens": stats.prompt_tokens,
            "loaded_pages": counters.loaded_pages,
            "saved_pages": counters.saved_pages,
            "full_hits": counters.full_hits,
            "demand_loads": counters.demand_loads,
            "preemptions": counters.preemptions,
        }

    def rates(self, dialogues: Dialogues, arm: Arm, num_decodes: int) -> Rates:
        """Prefill alone: every prefix once, one token each. Decode alone: the steps in which a full
        batch decodes."""
        engine, runner = self._engine(arm, dialogues)
        prefixes = dialogues.prefixes
        with engine:
            for agent in range(len(prefixes)):
                engine.agent(agent)
            start = time.perf_counter()
            self._drive(engine, prefixes, 1)
            prefill_s = time.perf_counter() - start
            prefill_floor_s = self.floor_s(runner.shapes, arm.reproducible)
            runner.shapes.clear()
            full = min(self.scheduler.max_num_seqs, len(prefixes))
            decode_s = self._decode(engine, runner, prefixes[:full], num_decodes)
            shapes = Counter({s: n for s, n in runner.shapes.items() if s == (full, full)})
            steps = shapes[full, full]
        facts = {
            "prefill_floor": prefill_floor_s / prefill_s,
            "decode_floor": self.floor_s(shapes, arm.reproducible) / decode_s,
        }
        return Rates(prefixes.size / prefill_s, steps * full / decode_s, facts)

    def _drive(self, engine: Engine, prompts: Int32s, num_tokens: int) -> None:
        params = SamplingParams(num_tokens, temperature=0.0, ignore_eos=True)
        calls = [engine.submit(Request(row, agent, params)) for agent, row in enumerate(prompts)]
        while not all(call.done for call in calls):
            engine.step()

    def _decode(
        self, engine: Engine, runner: CountingRunner, prompts: Int32s, num_tokens: int
    ) -> float:
        """Seconds of the steps in which every prompt decodes."""
        params = SamplingParams(num_tokens, temperature=0.0, ignore_eos=True)
        calls = [engine.submit(Request(row, agent, params)) for agent, row in enumerate(prompts)]
        seconds = 0.0
        while not all(call.done for call in calls):
            start = time.perf_counter()
            engine.step()
            batch = runner.last
            if batch is not None and batch.num_tokens == batch.num_seqs == len(prompts):
                seconds += time.perf_counter() - start
        return seconds

    @torch.inference_mode()
    def floor_s(self, shapes: Counter[tuple[int, int]], reproducible: bool) -> float:
        """Seconds of the linear layers alone, with the row counts of these steps."""
        padded: Counter[tuple[int, int]] = Counter()
        for (rows, sampled), count in shapes.items():
            multiple = ROW_MULTIPLE if reproducible else 1
            padded[-(-rows // multiple) * multiple, -(-sampled // multiple) * multiple] += count
        body = [
            (layer.qkv, layer.o, layer.mlp.gate_up, layer.mlp.down) for layer in self.packed.layers
        ]
        total = 0.0
        for rows in {rows for rows, _ in padded}:
            count = sum(n for (r, _), n in padded.items() if r == rows)
            matrices = [part.weight for layer in body for part in layer]
            total += count * products_s(self.kernels, rows, matrices)
        for rows in {sampled for _, sampled in padded if sampled}:
            count = sum(n for (_, s), n in padded.items() if s == rows)
            total += count * products_s(self.kernels, rows, [self.packed.lm_head])
        return total


def products_s(kernels: KernelSet, rows: int, matrices: list[torch.Tensor]) -> float:
    """Seconds of ``rows`` rows times each matrix in turn: the median of a few, after one to warm
    up."""
    inputs = {width: torch.randn(rows, width) for width in {m.shape[1] for m in matrices}}
    times = []
    for _ in range(4 if rows > 64 else 12):
        start = time.perf_counter()
        for matrix in matrices:
            kernels.linear(inputs[matrix.shape[1]], matrix)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
