"""Our engine beside a peer's in one run: arms in processes of their own, which take turns.

Each arm is a process that loads the model once and then plays the dialogues whenever it is told to,
from an empty cache. A peer may have an environment of its own (``--peer-python``), which needs
numpy beside the peer. Texts are compared; wall time and processor time are both measured, since a
peer's threads may wait with their processors busy.

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
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dialogues import Dialogues, Played, Transcript, make_dialogues

PEERS = ("vllm", "transformers")
VLLM_BLOCK = 32  # tokens; its default of 128 wastes half a turn
READY = "ready"


# -- the child: one arm ----------------------------------------------------------------------------


def serve_arm(job: dict[str, Any]) -> None:
    """Play whenever a line comes in; say how long it took."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer

    def say(answer: object) -> None:
        os.write(answers, (json.dumps(answer) + "\n").encode())

    dialogues = make_dialogues(*job["dialogues"])
    play = MAKERS[job["engine"]](job, dialogues)
    play(dialogues.first(2))  # compiles, and asks what it needs to know
    say(READY)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        played = play(dialogues)
        say({
            "wall_s": time.perf_counter() - wall,
            "processor_s": time.process_time() - processor,
            "turn_s": played.turn_s,
            "outputs": played.outputs.tolist(),
        })  # fmt: skip


def make_ours(job: dict[str, Any], _: Dialogues) -> Callable[[Dialogues], Played]:
    import torch

    from benchmarks.ours import Arm, Ours
    from scalesim.model.checkpoint.loader import load_model

    torch.set_num_threads(job["threads"])
    ours = Ours(load_model(job["folder"]), job["max_num_seqs"], job["max_num_batched_tokens"])
    pool = job["pool"]
    arm = Arm("resident") if pool == 1 else Arm("deadline", pool, hints=True)
    return lambda dialogues: ours.play(dialogues, arm)


def make_transformers(job: dict[str, Any], _: Dialogues) -> Callable[[Dialogues], Played]:
    import torch

    from benchmarks.peer import Peer

    torch.set_num_threads(job["threads"])
    peer = Peer(Path(job["folder"]))
    return lambda dialogues: peer.play(dialogues, min(32, dialogues.num_agents), "agent")


def make_vllm(job: dict[str, Any], dialogues: Dialogues) -> Callable[[Dialogues], Played]:
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_CPU_KVCACHE_SPACE="4", VLLM_LOGGING_LEVEL="WARNING",
    )  # fmt: skip
    from vllm import LLM, SamplingParams

    blocks = dialogues.num_agents * -(-dialogues.max_len // VLLM_BLOCK)
    llm = LLM(
        job["folder"], dtype="float32", skip_tokenizer_init=True, enable_prefix_caching=True,
        block_size=VLLM_BLOCK, num_gpu_blocks_override=int(job["pool"] * blocks) + 1,
        max_num_seqs=job["max_num_seqs"], max_num_batched_tokens=job["max_num_batched_tokens"],
        max_model_len=dialogues.max_len + 1, seed=0,
    )  # fmt: skip
    params = SamplingParams(
        temperature=0.0, max_tokens=dialogues.output_len, ignore_eos=True, detokenize=False
    )

    def play(dialogues: Dialogues) -> Played:
        llm.reset_prefix_cache()
        transcript, turn_s = Transcript(dialogues), []
        for turn in range(dialogues.num_turns):
            start = time.perf_counter()
            prompts = [{"prompt_token_ids": row.tolist()} for row in transcript.prompts(turn)]
            replies = llm.generate(prompts, params, use_tqdm=False)
            outputs = np.array([reply.outputs[0].token_ids for reply in replies], np.int32)
            transcript.answer(turn, slice(0, dialogues.num_agents), outputs)
            turn_s.append(time.perf_counter() - start)
        return Played(turn_s, transcript.outputs())

    return play


MAKERS = {"ours": make_ours, "vllm": make_vllm, "transformers": make_transformers}


# -- the parent ------------------------------------------------------------------------------------


class ArmProcess:
    """A child that plays one arm."""

    def __init__(self, python: str, job: dict[str, Any]) -> None:
        threads = str(job["threads"])
        environment = os.environ | {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
        environment["PYTHONPATH"] = os.pathsep.join([".", "src", "kernels"])
        self._child = subprocess.Popen(
            [python, "-m", "benchmarks.peers", json.dumps(job)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self._answer()

    def _answer(self) -> Any:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"an arm ended with code {self._child.wait()}; its errors are above")
        return json.loads(line)

    def play(self) -> dict[str, Any]:
        assert self._child.stdin is not None
        self._child.stdin.write("play\n")
        self._child.stdin.flush()
        answer: dict[str, Any] = self._answer()
        return answer

    def close(self) -> None:
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.close()
        self._child.wait()
        self._child.stdout.close()


def compare_peers(options: argparse.Namespace, model: Any) -> Any:
    """The report of ``engine --peer``."""
    from benchmarks.report import Report, table
    from tests.model_folders import write_dummy_model

    report = Report(f"engine beside {options.peer}")
    sizes = [options.agents, options.turns, options.prefix, options.new, options.output,
             model.vocab_size, options.seed]  # fmt: skip
    played: dict[tuple[str, float], list[dict[str, Any]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        write_dummy_model(Path(folder), model, options.seed)
        shared = {"folder": folder, "dialogues": sizes, "threads": options.threads,
                  "max_num_seqs": options.max_num_seqs,
                  "max_num_batched_tokens": options.max_num_batched_tokens}  # fmt: skip
        arms: dict[tuple[str, float], ArmProcess] = {}
        try:
            for pool in options.pools:
                for name in ("ours", options.peer):
                    python = sys.executable if name == "ours" else options.peer_python
                    job = {**shared, "engine": name, "pool": pool}
                    arms[name, pool] = ArmProcess(python, job)
            for _ in range(options.rounds):
                for key, arm in arms.items():
                    played[key].append(arm.play())
        finally:
            for arm in arms.values():
                arm.close()
    turns = options.agents * options.turns
    want = played["ours", options.pools[0]][0]["outputs"]
    rows, total, warm = [], {}, {}
    for (name, pool), plays in played.items():
        key = f"{name}, {pool:.0%}"
        total[key] = statistics.median(turns / sum(p["turn_s"]) for p in plays)
        later = [sum(p["turn_s"][1:]) for p in plays]
        warm[key] = statistics.median((turns - options.agents) / s if s else 0.0 for s in later)
        processor = statistics.median(turns / p["processor_s"] for p in plays)
        differing = max(int((np.array(p["outputs"]) != np.array(want)).any(axis=2).sum())
                        for p in plays)  # fmt: skip
        spread = ", ".join(f"{turns / sum(p['turn_s']):.2f}" for p in plays)
        rows.append([key, f"{total[key]:.2f}", spread, f"{warm[key]:.2f}", f"{processor:.2f}",
                     str(differing)])  # fmt: skip
    columns = ["arm, KV memory", "turns/s", "plays", "warm turns/s", "turns / processor s",
               "turns differing"]  # fmt: skip
    report.tables.append(table(f"{options.agents} agents, {options.turns} turns", columns, rows))
    report.figures |= {
        "turns_per_s": total,
        "warm_turns_per_s": warm,
        "seconds_of_turns": {f"{n}, {p:.0%}": [x["turn_s"] for x in plays]
                             for (n, p), plays in played.items()},
        "processor_s": {f"{n}, {p:.0%}": [x["processor_s"] for x in plays]
                        for (n, p), plays in played.items()},
    }  # fmt: skip
    for pool in options.pools:
        ours, theirs = f"ours, {pool:.0%}", f"{options.peer}, {pool:.0%}"
        report.verdict(f"{pool:.0%} of the memory on both sides, warm: ours over {options.peer}",
                       warm[ours] / warm[theirs] if warm[theirs] else 0.0,
                       least=1.1 if pool == 1 else 2.5)  # fmt: skip
    return report


if __name__ == "__main__":
    serve_arm(json.loads(sys.argv[1]))
