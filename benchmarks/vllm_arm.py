"""One arm of ``plugin-vllm``, in a process of its own: vLLM plays a list of calls in process.

    python -m benchmarks.vllm_arm SETTINGS.json RESULT.json

Needs vLLM, and no other part of the benchmarks. A CPU's worth of threads: one.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

NO_NEXT_CALL = 1_000_000.0  # ticks
VOCAB_SIZE = 512
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the scheduler is an object that can be asked
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_PLUGINS": "",  # names are registered below, whether or not the package is installed
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


@dataclass(frozen=True, slots=True)
class ArmSettings:
    """``connector`` and ``extra`` go into vLLM's ``kv_transfer_config``; without a connector there
    is no host tier. ``groups``: calls that are made together, each (agent, time, next time)."""

    groups: list[list[tuple[int, float, float]]]
    connector: str | None = "OffloadingConnector"
    extra: dict[str, Any] = field(default_factory=dict)
    device_blocks: int = 100
    host_blocks: int = 200
    block_size: int = 32
    prefix: int = 256
    new: int = 32
    output: int = 4
    out_of_band: bool = False  # hints by the core's methods, as the HTTP routes send them
    aborts: int = 0  # of this many calls, each is joined by one that is aborted after a step
    adapters: int = 0
    seed: int = 0
    model_seed: int = 0
    max_tokens: int = 2048  # of a step

    def prompt(self, agent: int, number: int) -> list[int]:
        """The prompt of call ``number``: what is the agent's own, and what is new."""
        own = np.random.default_rng((self.seed, 1, agent)).integers(1, VOCAB_SIZE, self.prefix)
        new = np.random.default_rng((self.seed, 2, number)).integers(1, VOCAB_SIZE, self.new)
        return [*own.tolist(), *new.tolist()]


def write_llama(folder: Path, seed: int) -> None:
    """A Llama of two layers and random weights, for token ids only."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=4096,
        initializer_range=0.2, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)


def make_llm(folder: Path, settings: ArmSettings) -> Any:
    """vLLM on ``folder``, with as many device and host blocks as asked."""
    from vllm import LLM
    from vllm.config import KVTransferConfig

    transfer = None
    if settings.connector is not None:
        page = 2 * 2 * settings.block_size * 2 * 32 * 4  # K and V, layers, tokens, heads, float32
        extra = {
            "spec_name": "ScaleSimOffloadingSpec",
            "cpu_bytes_to_use": settings.host_blocks * -(-page // 4096) * 4096,
            "offload_prompt_only": False,
            **settings.extra,
        }
        transfer = KVTransferConfig(
            kv_connector=settings.connector, kv_role="kv_both", kv_connector_extra_config=extra
        )
    return LLM(
        model=str(folder), skip_tokenizer_init=True, dtype="float32", enforce_eager=True,
        block_size=settings.block_size, num_gpu_blocks_override=settings.device_blocks + 1,
        max_model_len=settings.prefix + settings.new + settings.output + settings.block_size,
        max_num_seqs=16, max_num_batched_tokens=settings.max_tokens,
        enable_prefix_caching=True, kv_transfer_config=transfer, disable_log_stats=True,
        seed=0, enable_lora=bool(settings.adapters), max_loras=max(1, settings.adapters),
    )  # fmt: skip


def play(llm: Any, settings: ArmSettings) -> dict[str, Any]:
    """All calls, group by group: tokens found, the texts' digest, seconds, what the plug-in
    counts."""
    from vllm import SamplingParams

    core = llm.llm_engine.engine_core.engine_core
    cached, texts, number, counts = [], [], 0, []
    begin = time.perf_counter()
    for group in settings.groups:
        prompts, params = [], []
        for agent, now, soon in group:
            said = {"agent": str(agent), "now": now, "next": soon}
            if settings.out_of_band:
                core.scalesim_tick(1.0, now)
                core.scalesim_expect({str(agent): soon}, True, {str(agent): 1.0})
                said = {"agent": str(agent)}
            prompts.append({"prompt_token_ids": settings.prompt(agent, number)})
            params.append(
                SamplingParams(
                    temperature=0.0, max_tokens=settings.output, min_tokens=settings.output,
                    ignore_eos=True, detokenize=False,
                    extra_args={"kv_transfer_params": {"scalesim": said}},
                )
            )  # fmt: skip
            number += 1
        if number <= settings.aborts:
            abort_one(llm, settings, number)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        for output in outputs:
            cached.append(output.num_cached_tokens or 0)
            texts.append(list(output.outputs[0].token_ids))
        counts.append(core.scalesim_stats())
    took = time.perf_counter() - begin
    pool = core.scheduler.kv_cache_manager.block_pool
    return {
        "cached": cached,
        "texts": hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:8],
        "seconds": took,
        "counts": counts[-1] or {} if counts else {},
        "free_blocks": pool.get_num_free_blocks(),
    }


def abort_one(llm: Any, settings: ArmSettings, number: int) -> None:
    """A call of nobody's that is taken back after the first step."""
    from vllm import SamplingParams

    engine = llm.llm_engine
    prompt = {"prompt_token_ids": settings.prompt(-number, number)}
    name = engine.add_request(f"abort-{number}", prompt, SamplingParams(max_tokens=64))
    engine.step()
    engine.abort_request([name or f"abort-{number}"])


def main(arguments: Sequence[str]) -> None:
    source, target = map(Path, arguments)
    settings = ArmSettings(**json.loads(source.read_text()))
    os.environ.update(ENVIRONMENT)
    from scalesim.vllm.plugin import register

    register()
    folder = target.with_suffix(".model")
    write_llama(folder, settings.model_seed)
    target.write_text(json.dumps(play(make_llm(folder, settings), settings)))


if __name__ == "__main__":
    main(sys.argv[1:])
