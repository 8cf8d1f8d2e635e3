"""Our engine beside a peer's in one run: arms in processes of their own, which take turns.

A peer may have an environment of its own (``--peer-python``). Texts are compared; wall time and
processor time are both measured, since a peer's threads may wait with their processors busy.

``--pools`` gives both sides the same KV memory on the device, as a share of what all agents' state
needs: ours keeps the remainder in host memory; vLLM on a CPU has no second tier and computes it
again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.report import Report, save_svg, table
from scalesim.model.checkpoint.config import ModelConfig, parse_config
from tests.model_folders import write_dummy_model

PEERS = ("vllm", "transformers")
OURS = "ours"


@dataclass(frozen=True, order=True)
class Side:
    """An engine with KV memory for a share of all agents' state."""

    engine: str
    pool: float

    def __str__(self) -> str:
        return f"{self.engine}, {self.pool:.0%}"


@dataclass(frozen=True)
class Play:
    """Seconds of each turn, those of all processors, and token ids [agents, turns, output]."""

    turn_s: list[float]
    processor_s: float
    outputs: npt.NDArray[np.int32]

    @property
    def rate(self) -> float:
        """Turns a second, the first prefill included."""
        return len(self.outputs) * len(self.turn_s) / sum(self.turn_s)

    @property
    def warm_rate(self) -> float:
        """Turns a second from the second turn on."""
        return len(self.outputs) * (len(self.turn_s) - 1) / (sum(self.turn_s[1:]) or float("inf"))

    @property
    def processor_rate(self) -> float:
        return len(self.outputs) * len(self.turn_s) / self.processor_s


class ArmProcess:
    """A child that plays one arm."""

    def __init__(self, python: str, job: dict[str, Any]) -> None:
        threads = str(job["threads"])
        environment = os.environ | {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
        environment["PYTHONPATH"] = os.pathsep.join([".", "src", "kernels"])
        self._child = subprocess.Popen(
            [python, "-m", "benchmarks.peer_arms", json.dumps(job)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self._answer()

    def _answer(self) -> Any:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"an arm ended with code {self._child.wait()}; its errors are above")
        return json.loads(line)

    def play(self) -> Play:
        assert self._child.stdin is not None
        self._child.stdin.write("play\n")
        self._child.stdin.flush()
        answer = self._answer()
        return Play(
            answer["turn_s"], answer["processor_s"], np.array(answer["outputs"], dtype=np.int32)
        )

    def close(self) -> None:
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.close()
        self._child.wait()
        self._child.stdout.close()


def compare_peers(options: argparse.Namespace, model: ModelConfig) -> Report:
    """The report of ``engine --peer``."""
    with tempfile.TemporaryDirectory() as made:
        folder = options.model or Path(made)
        if options.model:
            model = parse_config(json.loads((folder / "config.json").read_text("utf-8")))
        else:
            write_dummy_model(folder, model, options.seed)
        played = play_all(options, folder, model.vocab_size)
    return report_of(options, played)


def play_all(options: argparse.Namespace, folder: Path, vocab_size: int) -> dict[Side, list[Play]]:
    job = {
        "folder": str(folder),
        "dialogues": [options.agents, options.turns, options.prefix, options.new, options.output,
                      vocab_size, options.seed],
        "threads": options.threads,
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
    }  # fmt: skip
    played: dict[Side, list[Play]] = defaultdict(list)
    with ExitStack() as stack:
        arms: dict[Side, ArmProcess] = {}
        for side in (Side(name, pool) for pool in options.pools for name in (OURS, options.peer)):
            python = sys.executable if side.engine == OURS else options.peer_python
            arms[side] = ArmProcess(python, job | {"engine": side.engine, "pool": side.pool})
            stack.callback(arms[side].close)
        for _ in range(options.rounds):
            for side, arm in arms.items():
                play = arm.play()
                played[side].append(play)
                spent = ", ".join(f"{seconds:.2f}" for seconds in play.turn_s)
                print(
                    f"{side}: {spent} s a turn, {play.processor_s:.1f} processor seconds",
                    file=sys.stderr,
                    flush=True,
                )  # a run that is cut short has shown these
    return played  # fmt: skip


def report_of(options: argparse.Namespace, played: dict[Side, list[Play]]) -> Report:
    report = Report(f"engine beside {options.peer}")
    total = {s: statistics.median(play.rate for play in plays) for s, plays in played.items()}
    warm = {s: statistics.median(play.warm_rate for play in plays) for s, plays in played.items()}
    want = next(iter(played.values()))[0].outputs
    differing = {
        side: max(int((play.outputs != want).any(axis=2).sum()) for play in plays)
        for side, plays in played.items()
    }
    rows = [
        [str(side), f"{total[side]:.2f}", ", ".join(f"{play.rate:.2f}" for play in plays),
         f"{warm[side]:.2f}",
         f"{statistics.median(play.processor_rate for play in plays):.2f}", str(differing[side])]
        for side, plays in played.items()
    ]  # fmt: skip
    columns = ["arm, KV memory", "turns/s", "plays", "warm turns/s", "turns / processor s",
               "turns differing"]  # fmt: skip
    report.tables.append(table(f"{options.agents} agents, {options.turns} turns", columns, rows))
    report.figures |= {
        str(side): {
            "turns_per_s": total[side], "warm_turns_per_s": warm[side],
            "turn_s": [play.turn_s for play in plays],
            "processor_s": [play.processor_s for play in plays],
            "turns_differing": differing[side],
        }
        for side, plays in played.items()
    }  # fmt: skip
    judge(report, options.peer, total, warm)
    if options.plot:
        plot(options.plot, options.peer, played)
    return report


def judge(report: Report, peer: str, total: dict[Side, float], warm: dict[Side, float]) -> None:
    for pool in sorted({side.pool for side in total}, reverse=True):
        ours, theirs = Side(OURS, pool), Side(peer, pool)
        if pool == 1.0:
            report.verdict(f"all memory: ours over {peer}", total[ours] / total[theirs], least=1.1)
        else:
            report.verdict(f"{pool:.0%} on both sides, warm: ours over {peer}",
                           warm[ours] / warm[theirs], least=2.5)  # fmt: skip
            if (whole := Side(peer, 1.0)) in total:
                report.verdict(f"ours with {pool:.0%} over {whole}", total[ours] / total[whole],
                               least=1.0)  # fmt: skip


def plot(path: Path, peer: str, played: dict[Side, list[Play]]) -> None:
    """Warm turns a second by memory, with the spread of the plays."""
    pools = sorted({side.pool for side in played})
    names = {OURS: "ScaleSim", "vllm": "vLLM"}

    def draw(axis: Any) -> None:
        for engine in (OURS, peer):
            rates = [[play.warm_rate for play in played[Side(engine, pool)]] for pool in pools]
            middle = [statistics.median(found) for found in rates]
            spread = [[abs(end(found) - at) for found, at in zip(rates, middle, strict=True)]
                      for end in (min, max)]  # fmt: skip
            axis.errorbar(range(len(pools)), middle, spread, fmt="o-", capsize=3,
                          label=names.get(engine, engine))  # fmt: skip
        axis.set(xticks=range(len(pools)), xticklabels=[f"{pool:.0%}" for pool in pools],
                 xlabel="KV memory, of what all agents' state needs",
                 ylabel="turns a second, warm", ylim=(0, None))  # fmt: skip
        axis.legend()

    save_svg(path, (6, 3.4), draw)
