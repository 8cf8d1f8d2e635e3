"""The decoder gives transformers' logits and greedy tokens on random tiny models of every kind."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from scalesim.model.checkpoint.loader import load_model

VOCAB = 211
PROMPT = 75  # crosses a bucket of 64 and ends inside a block
NEW = 24


@dataclass(frozen=True)
class Case:
    family: str
    heads: tuple[int, int]
    head_dim: int
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default"})
    options: dict[str, Any] = field(default_factory=dict)
    old_spelling: bool = False
    sharded: bool = False
    block_size: int | None = None

    def __str__(self) -> str:
        names = [self.family, f"{self.heads[0]}x{self.heads[1]}x{self.head_dim}"]
        names += [self.rope.get("rope_type", "nested"), *self.options]
        names += ["old"] * self.old_spelling + ["sharded"] * self.sharded
        return "-".join(names)


LINEAR = {"rope_type": "linear", "factor": 2.5}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
DEEPSEEK = {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7, "beta_fast": 16, "truncate": False}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
LONG = {
    "rope_type": "longrope", "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)], "original_max_position_embeddings": 128,
}  # fmt: skip
LOCAL = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
}
WINDOW = {"sliding_window": 20}
LATE = {**WINDOW, "use_sliding_window": True, "max_window_layers": 1}
GEMMA2 = {**WINDOW, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
GEMMA2["query_pre_attn_scalar"] = 24
GEMMA3 = {**WINDOW, "query_pre_attn_scalar": 24, "layer_types": [*LOCAL, "sliding_attention"]}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
TIED = {"tie_word_embeddings": True}
BIAS = {"attention_bias": True}

CASES = [
    Case("Llama", (4, 4), 16),
    Case("Llama", (4, 2), 32, old_spelling=True),
    Case("Llama", (8, 2), 64, LLAMA3, sharded=True),
    Case("Llama", (7, 1), 16, LINEAR),
    Case("Llama", (2, 2), 128, LLAMA3, TIED, old_spelling=True),
    Case("Llama", (4, 1), 32, options={"attention_bias": True, "mlp_bias": True}, block_size=16),
    Case("Llama", (6, 2), 16, LINEAR, old_spelling=True, sharded=True, block_size=64),
    Case("Llama", (18, 1), 16),
    Case("Qwen2", (4, 2), 16),
    Case("Qwen2", (14, 2), 32, options=TIED, old_spelling=True),
    Case("Qwen2", (2, 2), 64, sharded=True, block_size=32),
    Case("Qwen2", (4, 1), 128, LINEAR),
    Case("Qwen2", (7, 7), 16, LLAMA3),
    Case("Qwen3", (4, 4), 32),
    Case("Qwen3", (4, 2), 64, options=TIED),
    Case("Qwen3", (8, 2), 16, LLAMA3, BIAS, old_spelling=True),
    Case("Qwen3", (7, 1), 128, LINEAR, sharded=True),
    Case("Qwen3", (2, 1), 128, block_size=16),
    Case("Llama", (4, 2), 16, YARN),
    Case("Llama", (4, 2), 32, DEEPSEEK, old_spelling=True),
    Case("Llama", (4, 2), 16, DYNAMIC, old_spelling=True),
    Case("Mistral", (4, 2), 32, options=WINDOW),
    Case("Mistral", (6, 1), 16, YARN, WINDOW, old_spelling=True, sharded=True, block_size=16),
    Case("Mistral", (4, 4), 16, options={"sliding_window": None}, old_spelling=True),
    Case("Qwen2", (4, 2), 16, options=LATE, old_spelling=True),
    Case("Qwen3", (4, 2), 16, options=LATE),
    Case("Gemma2", (4, 2), 32, options=GEMMA2),
    Case("Gemma2", (7, 1), 16, LINEAR, {**GEMMA2, "attn_logit_softcapping": None}, True),
    Case("Gemma3", (4, 1), 32, LOCAL, GEMMA3),
    Case("Gemma3", (4, 2), 16, LOCAL, GEMMA3, old_spelling=True, sharded=True),
    Case("Olmo2", (4, 4), 16, LLAMA3),
    Case("Olmo2", (8, 2), 32, options={"rms_norm_eps": 1e-5, **BIAS}, old_spelling=True),
    Case("Phi3", (4, 2), 16, LONG),
    Case("Phi3", (4, 4), 16, LONG, WINDOW, old_spelling=True),
    Case("Phi3", (8, 2), 32, options={"sliding_window": None}, sharded=True),
    Case("Qwen3Moe", (4, 2), 32, options=EXPERTS, sharded=True),
    Case("Qwen3Moe", (4, 1), 16, LINEAR, {**EXPERTS, "norm_topk_prob": True}, True),
    Case("Qwen3Moe", (2, 2), 16, options={**EXPERTS, "mlp_only_layers": [1], **LATE}),
]
WITHOUT_HEAD_DIM = ("Qwen2", "Olmo2", "Phi3")


def make_folder(case: Case, folder: Path) -> Any:
    """Save a random model of this case; the transformers model that was saved."""
    torch.manual_seed(7)
    num_heads, num_kv_heads = case.heads
    own = case.family in WITHOUT_HEAD_DIM
    head_dim = {} if own else {"head_dim": case.head_dim}
    hidden = num_heads * (case.head_dim if own else 12)
    rope = case.rope if case.rope is LOCAL else {"rope_theta": 20000.0, **case.rope}
    text = "Text" if case.family == "Gemma3" else ""
    config = getattr(transformers, f"{case.family}{text}Config")(
        vocab_size=VOCAB, hidden_size=hidden, intermediate_size=104, num_hidden_layers=3,
        num_attention_heads=num_heads, num_key_value_heads=num_kv_heads,
        max_position_embeddings=256, rope_parameters=copy.deepcopy(rope),
        eos_token_id=None, bos_token_id=None, pad_token_id=None, **head_dim, **case.options,
    )  # fmt: skip
    model = getattr(transformers, f"{case.family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif case.family.startswith("Gemma"):
                parameter.normal_(0, 0.2)
            else:
                parameter.normal_(1, 0.2)
    model.save_pretrained(folder, max_shard_size="60KB" if case.sharded else "5GB")
    if case.old_spelling:
        respell(folder / "config.json")
    return model


def respell(path: Path) -> None:
    raw = json.loads(path.read_text())
    rope = raw.pop("rope_parameters")
    raw.pop("layer_types", None)
    if "full_attention" in rope:
        raw["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        raw["sliding_window_pattern"] = 2
        rope = rope["full_attention"]
    raw["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    raw["rope_scaling"] = None if rope["type"] == "default" else rope
    raw["torch_dtype"] = raw.pop("dtype")
    path.write_text(json.dumps(raw))


def oracle_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, what: str) -> None:
    error = float((ours - theirs).abs().max() / theirs.std())
    assert error <= 1e-4, f"{what}: max|delta| is {error:.2e} standard deviations"


def assert_greedy(model: Any, prompt: list[int], tokens: list[int]) -> int:
    """Equal up to the first position that is too close to call; 1 if there was one."""
    logits = oracle_logits(model, prompt + tokens)[len(prompt) - 1 : -1]
    for row, token in zip(logits, tokens, strict=True):
        best = row.topk(2).values
        if best[0] - best[1] < 1e-3 * logits.std():
            return 1
        assert int(row.argmax()) == token
    return 0


@pytest.fixture(scope="module")
def too_close() -> Any:
    """Counts positions that were too close to call; at most 1 % over the whole module."""
    counts: list[int] = []
    yield counts
    assert sum(counts) <= 0.01 * NEW * len(counts) + 1


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_and_greedy_tokens(
    case: Case, tmp_path: Path, make_driver: Any, too_close: list[int]
) -> None:
    oracle = make_folder(case, tmp_path)
    driver = make_driver(load_model(tmp_path).model, block_size=case.block_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == case.sharded
    prompt = np.random.default_rng(1).integers(0, VOCAB, PROMPT).tolist()
    want = oracle_logits(oracle, prompt)

    driver.add("whole", PROMPT + NEW)
    whole = driver.feed("whole", prompt)
    assert_close(whole, want, "whole prefill")
    first = int(driver.output.token_ids[0])
    driver.add("chunks", PROMPT + NEW)
    assert torch.equal(driver.feed("chunks", prompt, chunk=7), whole)
    blocks = (PROMPT - 1) // driver.geometry.block_size
    driver.add("cached", PROMPT + NEW, shared="whole", shared_blocks=blocks)
    rest = blocks * driver.geometry.block_size
    assert torch.equal(driver.feed("cached", prompt[rest:]), whole[rest:])
    driver.move("chunks")

    for name in ("whole", "chunks", "cached"):
        tokens = driver.greedy(name, first, NEW)
        too_close.append(assert_greedy(oracle, prompt, tokens))
