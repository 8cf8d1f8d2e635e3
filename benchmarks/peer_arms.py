"""One arm of a comparison with a peer, in a process of its own.

The process loads the model once, and then plays the dialogues whenever a line comes in, from an
empty cache. A peer's environment needs numpy beside the peer, and nothing else.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dialogues import Dialogues, Played, Transcript, make_dialogues

VLLM_BLOCK = 32  # tokens; its default of 128 wastes half a turn
READY = "ready"


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


def make_ours(job: dict[str, Any], whole: Dialogues) -> Callable[[Dialogues], Played]:
    import torch

    from benchmarks.ours import Arm, Ours
    from scalesim.model.checkpoint.loader import load_model

    torch.set_num_threads(job["threads"])
    ours = Ours(load_model(job["folder"]), job["max_num_seqs"], job["max_num_batched_tokens"])
    pool = job["pool"]
    arm = Arm("resident") if pool == 1 else Arm("deadline", pool, hints=True)

    def play(dialogues: Dialogues) -> Played:
        """A share of the state of the few agents that warm up would not hold one of them."""
        everybody = dialogues.num_agents == whole.num_agents
        return ours.play(dialogues, arm if everybody else Arm("resident"))

    return play


def make_transformers(job: dict[str, Any], _: Dialogues) -> Callable[[Dialogues], Played]:
    import torch

    from benchmarks.peer import Peer

    torch.set_num_threads(job["threads"])
    peer = Peer(Path(job["folder"]))
    return lambda dialogues: peer.play(dialogues, job["max_num_seqs"], "agent")


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


if __name__ == "__main__":
    serve_arm(json.loads(sys.argv[1]))
