"""An engine above a disk, for real: agents whose state is nearly all on it, under each policy.

A random model on a CPU. The device holds 2 % of all state, the host 8 %, the disk everything. All
agents speak in turns in one order, which their hints say. First every agent speaks once, which
makes the state and is not counted. Two tables: with a disk that is limited, and with the disk as it
is. The limit is ``--pace`` times the rate at which reading an agent's state takes as long as a turn
of ``lru-recompute``, as the run itself measures it. Texts must be those of an engine with room for
everything.

What a disk is worth depends on how much is computed for a byte of KV. The model has one layer and
one small KV head under a wide MLP: 13 kFLOP a byte. Qwen2.5-0.5B in 16 bits has 58, and ``TINY`` of
the other benchmarks 0.6, with which computing again is nearly free.

What the arithmetic allows, with ``c`` the share of a recomputing turn that no tier can save (new
tokens, decoding, the Python of a turn) and ``p`` the pace: reading and computing go on side by
side, so ``deadline`` reads the part of all state with which both take equally long. That is at most
``min(1 / c, 1 + p (1 - c))`` times recomputing. The disk binds while ``p < 1 / c``, and is faster
than recomputing if ``p > 1``. Whoever reads everything, as ``lru-swap`` does, gets ``p`` at most.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dialogues import Dialogues, Transcript, make_dialogues
from benchmarks.engine import TINY
from benchmarks.report import Report, table
from scalesim.config import EngineConfig, SchedulerConfig
from scalesim.core import Int32s
from scalesim.engine.build import parts_for
from scalesim.engine.engine import Engine
from scalesim.memory.disk.slot_files import slot_bytes
from scalesim.memory.geometry import PageGeometry
from scalesim.model.checkpoint.loader import LoadedModel, load_model
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams
from tests.model_folders import write_dummy_model

QUICK: dict[str, Any] = {"agents": 40, "prefix": 64, "turns": 2}
WAVE = 16  # agents that speak in a tick
SHAPE = replace(
    TINY, hidden_size=256, intermediate_size=1024, num_layers=1, num_heads=8, head_dim=16
)


@dataclass(frozen=True)
class Played:
    """The counted turns of one engine: seconds, calls, what moved, and the texts. ``cpu_s``: of
    processor time, on all threads."""

    seconds: float
    cpu_s: float
    calls: int
    read_bytes: int
    computed_tokens: int  # of prompts
    texts: Int32s

    @property
    def turns_per_s(self) -> float:
        return self.calls / self.seconds

    @property
    def turns_per_cpu_s(self) -> float:
        return self.calls / self.cpu_s


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--agents", type=int, default=2000)
    add("--turns", type=int, default=2, help="the first makes the state and is not counted")
    add("--prefix", type=int, default=256, help="tokens of each agent's private prefix")
    add("--new", type=int, default=16, help="tokens that each turn adds to the prompt")
    add("--output", type=int, default=8, help="tokens that each turn generates")
    add("--device", type=float, default=0.02, help="share of all state on the device")
    add("--host", type=float, default=0.08, help="share of all state on the host")
    add("--pace", type=float, default=2.0, help="the limited disk's rate, of that of computing")
    add("--disk", type=Path, help="a folder on the disk; a temporary one if not given")


def run(options: argparse.Namespace) -> Report:
    if options.quick:
        vars(options).update(QUICK)
    report = Report("tiers")
    dialogues = make_dialogues(
        options.agents, options.turns, options.prefix, options.new, options.output,
        SHAPE.vocab_size, options.seed,
    )  # fmt: skip
    with (
        tempfile.TemporaryDirectory() as model,
        tempfile.TemporaryDirectory(dir=options.disk) as disk,
    ):
        write_dummy_model(Path(model), SHAPE, options.seed)
        bench = Bench(load_model(model), dialogues, options, Path(disk))
        resident = bench.play("resident", None)
        recompute = bench.play("lru-recompute", None)
        state_bytes = bench.agent_pages * bench.geometry.page_bytes
        paced = int(options.pace * recompute.turns_per_s * state_bytes)
        for name, rate in (
            (f"disk limited to {paced / 1e6:.1f} MB/s", paced),
            ("disk as it is", 0),
        ):
            played = {
                "resident": resident,
                "lru-recompute": recompute,
                **{policy: bench.play(policy, rate) for policy in ("deadline", "lru-swap")},
            }
            show(report, name, played)
            if rate:
                busy = played["deadline"].read_bytes / rate / played["deadline"].seconds
                report.notes.append(f"{name}: it reads for {busy:.0%} of the time of `deadline`")
    return report


class Bench:
    """Makes an engine for each play, all with the same model, dialogues and shares."""

    def __init__(
        self, loaded: LoadedModel, dialogues: Dialogues, options: argparse.Namespace, disk: Path
    ) -> None:
        shape = loaded.config
        self.geometry = PageGeometry.choose(
            shape.num_layers, shape.num_kv_heads, shape.head_dim, loaded.model.dtype.itemsize
        )
        self.agent_pages = self.geometry.blocks_for(dialogues.max_len)
        self._loaded, self._dialogues, self._disk = loaded, dialogues, disk
        self._device, self._host = options.device, options.host

    def play(self, policy: str, disk_rate: int | None) -> Played:
        """Under ``policy``; with a disk of ``disk_rate`` bytes a second (0: as it is), or none."""
        size, agents = self.geometry.page_bytes, self._dialogues.num_agents
        everything = agents * self.agent_pages
        device = max(int(self._device * everything), 2 * WAVE * self.agent_pages)
        config = EngineConfig(
            device_memory=(device + 1) * size,
            host_memory=int(self._host * everything) * size,
            policy=policy,
            scheduler=SchedulerConfig(max_num_seqs=WAVE),
        )
        if disk_rate is not None:
            config = replace(
                config,
                disk=str(self._disk),
                disk_memory=everything * slot_bytes(size),
                disk_bandwidth=disk_rate or None,
            )
        with Engine(parts_for(self._loaded, config)) as engine:
            return self._play(engine)

    def _play(self, engine: Engine) -> Played:
        dialogues, transcript = self._dialogues, Transcript(self._dialogues)
        params = SamplingParams(dialogues.output_len, temperature=0.0, ignore_eos=True)
        agents = range(dialogues.num_agents)
        num_waves = -(-len(agents) // WAVE)
        for agent in agents:
            engine.agent(agent)
        for turn in range(dialogues.num_turns):
            if turn <= 1:
                before, start, cpu = engine.stats, time.perf_counter(), time.process_time()
            prompts = transcript.prompts(turn)
            for first in range(0, len(agents), WAVE):
                wave = agents[first : first + WAVE]
                requests = [Request(prompts[agent], agent, params) for agent in wave]
                for agent, reply in zip(wave, engine.run(requests), strict=True):
                    assert isinstance(reply, Reply)
                    outputs = np.array([reply.token_ids], np.int32)
                    transcript.answer(turn, slice(agent, agent + 1), outputs)
                engine.expect(dict.fromkeys(wave, float(num_waves)))
                engine.tick()
        seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
        stats = engine.stats
        computed = stats.prompt_tokens - stats.cached_tokens
        computed -= before.prompt_tokens - before.cached_tokens
        read = stats.unspilled_bytes - before.unspilled_bytes
        calls = stats.calls - before.calls
        return Played(seconds, cpu_s, calls, read, computed, transcript.outputs())


def show(report: Report, name: str, played: dict[str, Played]) -> None:
    resident = played["resident"]
    rows = [
        [
            policy,
            f"{one.turns_per_s:.1f}",
            f"{one.turns_per_cpu_s:.1f}",
            f"{one.read_bytes / 1e6:.0f}",
            f"{one.computed_tokens}",
            "yes" if np.array_equal(one.texts, resident.texts) else "NO",
        ]
        for policy, one in played.items()
    ]
    columns = [
        "policy",
        "turns/s",
        "turns/s of processor",
        "MB from disk",
        "tokens computed",
        "texts equal",
    ]
    report.tables.append(table(name, columns, rows))
    report.figures[name] = {
        policy: {
            "turns_per_s": one.turns_per_s,
            "turns_per_cpu_s": one.turns_per_cpu_s,
            "read_bytes": one.read_bytes,
        }
        for policy, one in played.items()
    }
    equal = sum(np.array_equal(one.texts, resident.texts) for one in played.values())
    report.verdict(f"{name}: arms with the texts of all-resident", equal, least=len(played))
    best, swap, recompute = played["deadline"], played["lru-swap"], played["lru-recompute"]
    if best.read_bytes and swap.read_bytes:
        ratio = swap.read_bytes / best.read_bytes
        report.verdict(f"{name}: deadline over lru-swap, of their ratio of bytes ({ratio:.2f})",
                       best.turns_per_s / swap.turns_per_s / ratio, least=0.9)  # fmt: skip
        report.verdict(f"{name}: the same by processor time",
                       best.turns_per_cpu_s / swap.turns_per_cpu_s / ratio, least=0.9)  # fmt: skip
    else:
        report.notes.append(f"{name}: one of the two read nothing: there is no ratio of bytes")
    report.verdict(f"{name}: deadline over recomputing",
                   best.turns_per_s / recompute.turns_per_s, least=2.0)  # fmt: skip
    report.verdict(f"{name}: deadline over recomputing, by processor time",
                   best.turns_per_cpu_s / recompute.turns_per_cpu_s, least=2.0)  # fmt: skip
