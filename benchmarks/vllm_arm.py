"""Arms of ``plugin-vllm``, one after the other: vLLM plays a list of calls in process.

    python -m benchmarks.vllm_arm

Each line of the standard input names a file with settings and one for the result, separated by a
tab; the latter's name is printed when it is written. Needs vLLM, and no other part of the
benchmarks. A CPU's worth of threads: one.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    aborts: int = 0  # before so many groups, a call begins and is aborted after a step
    resets: int = 0  # before so many groups, all caches are emptied while a call runs
    restarts: tuple[int, ...] = ()  # in these groups the engine is stopped while all calls run
    adapters: int = 0  # LoRA adapters, which agents have in turn
    adapter_slots: int = 0  # how many of them the device holds; 0: all
    known: int = 0  # agents that are spoken of before the first call, and never call
    prefix_caching: bool = True  # of the device
    ranks: int = 1  # workers, each with a part of every layer and of its cache
    seed: int = 0

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
            "spec_module_path": "scalesim.vllm.spec",  # for workers, where nothing is registered
            "cpu_bytes_to_use": settings.host_blocks * -(-page // 4096) * 4096,
            "offload_prompt_only": False,
            **settings.extra,
        }
        own = settings.connector == "ScaleSimConnector"
        transfer = KVTransferConfig(
            kv_connector=settings.connector, kv_role="kv_both", kv_connector_extra_config=extra,
            kv_connector_module_path="scalesim.vllm.connector" if own else None,
        )  # fmt: skip
    return LLM(
        model=str(folder), skip_tokenizer_init=True, dtype="float32", enforce_eager=True,
        block_size=settings.block_size, num_gpu_blocks_override=settings.device_blocks + 1,
        max_model_len=settings.prefix + settings.new + settings.output + settings.block_size,
        max_num_seqs=16, max_num_batched_tokens=2048,
        enable_prefix_caching=settings.prefix_caching, kv_transfer_config=transfer,
        disable_log_stats=True, seed=0, tensor_parallel_size=settings.ranks,
        distributed_executor_backend="mp" if settings.ranks > 1 else None,
        enable_lora=bool(settings.adapters),
        max_loras=max(1, settings.adapter_slots or settings.adapters),
    )  # fmt: skip


def play(llm: Any, settings: ArmSettings, folder: Path) -> dict[str, Any]:
    """All calls, group by group: tokens found, the texts' digest, seconds, what the plug-in
    counts."""
    from vllm import SamplingParams

    core = llm.llm_engine.engine_core.engine_core
    cached, texts, number, counts, preempted = [], [], 0, [], list[str]()
    spent = HookTime()
    spent.watch(core.scheduler)
    watch_preemptions(core.scheduler, preempted)
    if settings.known:
        others = {f"other {agent}": NO_NEXT_CALL + agent for agent in range(settings.known)}
        core.scalesim_expect(others, True, dict.fromkeys(others, 1.0))
        spent.seconds.clear()
    begin = time.process_time()
    for group in settings.groups:
        prompts, params = [], []
        for agent, now, soon in group:
            said = {"agent": str(agent), "now": now, "next": soon}
            if settings.out_of_band:
                core.scalesim_tick(1.0, now)
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
        if len(counts) < settings.aborts:
            interrupt(llm, settings, number, abort=True)
        if len(counts) < settings.resets:
            interrupt(llm, settings, number, abort=False)
        adapters = [lora_of(settings, agent, folder) for agent, _, _ in group]
        if len(counts) in settings.restarts:
            stop_under_load(llm, prompts, params, adapters)
            llm = make_llm(folder, settings)  # the callers ask again, with the same hints
            core = llm.llm_engine.engine_core.engine_core
            watch_preemptions(core.scheduler, preempted)
        outputs = llm.generate(prompts, params, lora_request=adapters, use_tqdm=False)
        if settings.out_of_band:
            for agent, _, soon in group:
                core.scalesim_expect({str(agent): soon}, True, {str(agent): 1.0})
        for output in outputs:
            cached.append(output.num_cached_tokens or 0)
            texts.append(list(output.outputs[0].token_ids))
        counts.append(core.scalesim_stats())
    took = time.process_time() - begin  # of the processor: other programs do not count
    while core.scheduler.has_requests():  # copies under way
        llm.llm_engine.step()
    scheduler = core.scheduler
    result = {
        "cached": cached,
        "texts": hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:8],
        "seconds": took,
        "hook_seconds": spent.seconds,
        "counts": counts[-1] or {} if counts else {},
        "free_blocks": scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
        "preemptions": len(preempted),
        "copies": (core.scalesim_stats() or {}).get("copies", 0),
    }
    llm.llm_engine.engine_core.shutdown()
    return result


def stop_under_load(llm: Any, prompts: list[Any], params: list[Any], adapters: list[Any]) -> None:
    """Stop the engine while requests with ``prompts`` run."""
    engine = llm.llm_engine
    for number, prompt in enumerate(prompts):
        engine.add_request(f"left-{number}", prompt, params[number], lora_request=adapters[number])
    for _ in range(3):
        engine.step()
    assert engine.get_num_unfinished_requests() == len(prompts)
    engine.engine_core.shutdown()


def watch_preemptions(scheduler: Any, preempted: list[str]) -> None:
    """Note in ``preempted`` the requests that ``scheduler`` preempts from now on."""
    schedule = scheduler.schedule

    def noted(*args: Any, **named: Any) -> Any:
        output = schedule(*args, **named)
        preempted.extend(output.preempted_req_ids or ())
        return output

    scheduler.schedule = noted


@contextmanager
def adapter_loads() -> Iterator[list[str]]:
    """The folders of the LoRA adapters that vLLM reads from disk meanwhile."""
    from vllm.lora.lora_model import LoRAModel

    loads: list[str] = []
    load = LoRAModel.from_local_checkpoint

    def noted(folder: str, *args: Any, **named: Any) -> Any:
        loads.append(folder)
        return load(folder, *args, **named)

    LoRAModel.from_local_checkpoint = noted
    yield loads
    LoRAModel.from_local_checkpoint = load


class HookTime:
    """Seconds of the processor's time in the plug-in's code, or in the queue that it orders, by
    method; calls from one to the other count once. What it takes to read the clock is left out."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside = False
        self._of_timing = 0.0  # what a method that does nothing would count for

        def nothing() -> None: ...

        timed = self._timed(nothing)
        for _ in range(2000):
            timed()
        self._of_timing = self.seconds.pop("nothing") / 2000

    def watch(self, scheduler: Any) -> None:
        """Watch the plug-in of ``scheduler``, if there is one."""
        side = getattr(scheduler.connector, "side", None)
        if side is None:
            return
        for part, names in (
            (side, "begin end matched admitted waits_for_load after_schedule completed has_work"),
            (scheduler.kv_cache_manager.block_pool.free_block_queue,
             "popleft_n remove append_n prepend_n"),
        ):  # fmt: skip
            for name in names.split():
                setattr(part, name, self._timed(getattr(part, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **named: Any) -> Any:
            if self._inside:
                return method(*args, **named)
            time.thread_time()  # the model has emptied the caches: the clock's code comes back here
            self._inside, begin = True, time.thread_time()
            try:
                return method(*args, **named)
            finally:
                spent = time.thread_time() - begin - self._of_timing
                self.seconds[method.__name__] = self.seconds.get(method.__name__, 0.0) + spent
                self._inside = False

        return timed


def interrupt(llm: Any, settings: ArmSettings, number: int, *, abort: bool) -> None:
    """A call of nobody's runs for two steps; then it is aborted, or all caches are emptied under
    it and it goes on to its end."""
    from vllm import SamplingParams

    engine, core = llm.llm_engine, llm.llm_engine.engine_core.engine_core
    prompt = {"prompt_token_ids": settings.prompt(1000 + number, number)}
    params = SamplingParams(max_tokens=8, min_tokens=8, ignore_eos=True, detokenize=False)
    name = f"interrupted-{number}-{abort}"
    engine.add_request(name, prompt, params)
    engine.step()
    engine.step()
    if abort:
        engine.abort_request([name])
        return
    assert core.scheduler.reset_prefix_cache(reset_running_requests=True, reset_connector=True)
    while engine.has_unfinished_requests():
        engine.step()


def write_adapters(folder: Path, settings: ArmSettings) -> None:
    """LoRA adapters of rank 8 in PEFT's format, on the attention's input projections."""
    from safetensors.numpy import save_file

    for number in range(settings.adapters):
        rng = np.random.default_rng((settings.seed, 3, number))
        weights = {}
        for layer in range(2):
            for part, rows in (("q_proj", 128), ("v_proj", 64)):
                name = f"base_model.model.model.layers.{layer}.self_attn.{part}.lora"
                weights[f"{name}_A.weight"] = rng.normal(0, 0.3, (8, 128)).astype(np.float32)
                weights[f"{name}_B.weight"] = rng.normal(0, 0.3, (rows, 8)).astype(np.float32)
        one = folder / f"adapter-{number}"
        one.mkdir()
        save_file(weights, one / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "bias": "none"}
        config |= {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
        (one / "adapter_config.json").write_text(json.dumps(config))


def lora_of(settings: ArmSettings, agent: int, folder: Path) -> Any:
    """The adapter of ``agent``; ``None`` without any."""
    if not settings.adapters:
        return None
    from vllm.lora.request import LoRARequest

    number = agent % settings.adapters
    return LoRARequest(f"adapter-{number}", number + 1, str(folder / f"adapter-{number}"))


def play_file(source: Path, target: Path) -> None:
    """Play the settings in ``source``, and write the result into ``target``."""
    settings = ArmSettings(**json.loads(source.read_text()))
    folder = target.with_suffix(".model")
    write_llama(folder, settings.seed)
    write_adapters(folder, settings)
    with adapter_loads() as loads:
        result = play(make_llm(folder, settings), settings, folder)
    target.write_text(json.dumps({**result, "adapter_loads": len(loads)}))


def main() -> None:
    os.environ.update(ENVIRONMENT)
    from scalesim.vllm.plugin import register

    register()
    for line in sys.stdin:
        source, target = line.rstrip("\n").split("\t")
        play_file(Path(source), Path(target))
        gc.collect()  # an engine has cycles
        print(target, flush=True)


if __name__ == "__main__":
    main()
