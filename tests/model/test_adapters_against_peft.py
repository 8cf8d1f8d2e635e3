"""An adapter in scattered pages gives PEFT's logits and greedy tokens: every kind of configuration,
many adapters in one batch, prefill, chunks and decode, and activated adapters over dialogues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scalesim_kernels import select

from scalesim.batch import NO_TOKEN
from scalesim.model.adapters.peft import PackedAdapter, read_adapter
from scalesim.model.checkpoint.loader import LoadedModel, load_model
from tests.model.conftest import Work
from tests.model.peft_oracle import ATTENTION, VOCAB, Oracle, make_oracle

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # of peft
]

PROMPT, NEW = 37, 12

CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {"r": 1, "target_modules": ["q_proj"]}),
    ("Llama", {"r": 2, "target_modules": ATTENTION}),
    ("Llama", {"r": 3, "target_modules": "all-linear"}),
    ("Llama", {"r": 4, "target_modules": ["gate_proj", "down_proj"], "lora_alpha": 3}),
    ("Llama", {"r": 16, "target_modules": r".*\.(q|v)_proj"}),
    ("Llama", {"r": 64, "target_modules": "all-linear", "use_rslora": True}),
    ("Llama", {"r": 256, "target_modules": ["o_proj", "up_proj"]}),
    ("Llama", {"r": 8, "target_modules": ["v_proj"], "layers_to_transform": [0, 2]}),
    ("Llama", {"r": 8, "target_modules": ["down_proj"], "layers_to_transform": 1}),
    ("Llama", {"r": 5, "target_modules": "all-linear", "rank_pattern": {"q_proj": 17}}),
    ("Llama", {"r": 4, "target_modules": ATTENTION, "alpha_pattern": {"k_proj": 1, "v_proj": 40}}),
    ("Llama", {"r": 4, "target_modules": "all-linear", "rank_pattern": {r"layers\.1\..*": 32},
               "alpha_pattern": {r"^model\.layers\.2\.mlp\.up_proj": 7}}),
    ("Qwen2", {"r": 8, "target_modules": "all-linear"}),
    ("Qwen2", {"r": 12, "target_modules": ["k_proj", "up_proj"], "use_rslora": True}),
    ("Qwen2", {"r": 24, "target_modules": ["q_proj", "k_proj"], "rank_pattern": {"k_proj": 1}}),
    ("Qwen2", {"r": 6, "target_modules": "all-linear", "exclude_modules": ["o_proj"]}),
    ("Qwen2", {"r": 8, "target_modules": r"model\.layers\.[02]\.mlp\..*_proj"}),
    ("Qwen3", {"r": 16, "target_modules": "all-linear"}),
    ("Mistral", {"r": 8, "target_modules": "all-linear"}),
    ("Gemma2", {"r": 8, "target_modules": "all-linear"}),
    ("Gemma3", {"r": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}),
    ("Olmo2", {"r": 8, "target_modules": "all-linear"}),
    ("Phi3", {"r": 8, "target_modules": ["o_proj", "down_proj"]}),
    ("Qwen3Moe", {"r": 8, "target_modules": ATTENTION}),
    ("Qwen3", {"r": 9, "target_modules": ["v_proj", "o_proj"], "layers_to_transform": [1, 2],
               "layers_pattern": "layers"}),
    ("Qwen3", {"r": 128, "target_modules": ["gate_proj"], "lora_alpha": 1.0}),
    ("Qwen3", {"r": 7, "target_modules": ["self_attn.q_proj", "mlp.down_proj"],
               "use_rslora": True, "alpha_pattern": {"down_proj": 2}}),
    ("Qwen3", {"r": 8, "target_modules": "all-linear",
               "rank_pattern": {"up_proj": 2, "down_proj": 40, "o_proj": 16}}),
]  # fmt: skip


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Oracle]:
    return {
        family: make_oracle(family, tmp_path_factory.mktemp(family))
        for family in dict.fromkeys(family for family, _ in CONFIGS)
    }


def prompt_of(seed: int, count: int = PROMPT) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, count).tolist()


def packed(path: Path, loaded: LoadedModel, driver: Any) -> PackedAdapter:
    return read_adapter(path, loaded.config, loaded.model.dtype, driver.geometry.page_bytes)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, what: str) -> None:
    error = float((ours - theirs).abs().max() / theirs.std())
    assert error <= 1e-4, f"{what}: max|delta| is {error:.2e} standard deviations"


def assert_greedy(want: torch.Tensor, tokens: list[int], what: str) -> None:
    """``want[i]`` are the logits that token ``i`` is drawn from; a near-tie may go either way."""
    for row, token in zip(want, tokens, strict=True):
        best = row.topk(2).values
        if best[0] - best[1] < 1e-3 * row.std():
            return
        assert int(row.argmax()) == token, what


def assert_tokens(oracle: Oracle, name: str | None, prompt: list[int], tokens: list[int]) -> None:
    want = oracle.logits(name, prompt + tokens)[len(prompt) - 1 : -1]
    assert_greedy(want, tokens, f"greedy tokens with {name}")


@pytest.mark.parametrize("index", range(len(CONFIGS)))
def test_one_adapter(index: int, oracles: dict[str, Oracle], make_driver: Any) -> None:
    family, settings = CONFIGS[index]
    oracle, name = oracles[family], f"config{index}"
    path = oracle.add(name, **settings)
    loaded = load_model(oracle.folder / "base")
    driver = make_driver(loaded.model, num_pages=600, block_size=(16, 32)[index % 2])
    driver.load("it", packed(path, loaded, driver))
    prompt = prompt_of(index)
    want = oracle.logits(name, prompt)
    assert float((want - oracle.logits(None, prompt)).abs().max()) > 0.01, (
        "the adapter does nothing"
    )

    driver.add("whole", PROMPT + NEW, adapter="it")
    assert_close(driver.feed("whole", prompt), want, "whole prefill")
    first = int(driver.output.token_ids[0])
    driver.add("chunks", PROMPT + NEW, adapter="it")
    assert_close(driver.feed("chunks", prompt, chunk=7), want, "chunks of 7")
    for sequence in ("whole", "chunks"):
        assert_tokens(oracle, name, prompt, driver.greedy(sequence, first, NEW))


def settings_of(index: int) -> dict[str, Any]:
    """Different ranks and targets, for many adapters in one batch. The scale is 2, as usual: a
    rank of 1 at a scale of 16 makes logits so steep that PEFT itself is 3e-5 from its fp64."""
    targets: Any = ["all-linear", ATTENTION, ["gate_proj", "up_proj", "down_proj"], ["v_proj"]]
    rank = (1, 4, 8, 16, 33)[index % 5]
    return {"r": rank, "lora_alpha": 2 * rank, "target_modules": targets[index % 4]}


@pytest.mark.parametrize(
    ("count", "kernels"), [(1, "cpu"), (3, "cpu"), (8, "cpu"), (32, "cpu"), (3, "reference")]
)
def test_mixed_batches(
    count: int, kernels: str, oracles: dict[str, Oracle], make_driver: Any
) -> None:
    """Adapters and the base in the same steps: prefill, chunked prefill, prefill beside decode,
    decode. Two sequences share each fourth adapter."""
    oracle = oracles["Llama"]
    loaded = load_model(oracle.folder / "base")
    driver = make_driver(loaded.model, num_pages=3000, kernels=select(kernels))
    names: list[str | None] = []
    for index in range(count):
        name = f"mixed{index}"
        if name not in oracle.folders:
            oracle.add(name, **settings_of(index))
        driver.load(name, packed(oracle.folders[name], loaded, driver))
        names += [name, name] if index % 4 == 1 else [name]
    names += [None, None]
    prompts = {str(i): prompt_of(100 + i, 20 + i % 5) for i in range(len(names))}
    wants = {str(i): oracle.logits(name, prompts[str(i)]) for i, name in enumerate(names)}
    for key, name in zip(prompts, names, strict=True):
        driver.add(key, len(prompts[key]) + NEW, adapter=name)

    early, late = list(prompts)[::2], list(prompts)[1::2]
    tokens = run_prefill(driver, {key: prompts[key] for key in early}, wants, chunk=64, beside={})
    tokens = run_prefill(driver, {key: prompts[key] for key in late}, wants, chunk=6, beside=tokens)
    while len(tokens[early[0]]) < NEW:
        decode(driver, tokens)
    for key, name in zip(prompts, names, strict=True):
        assert_tokens(oracle, name, prompts[key], tokens[key])


def run_prefill(
    driver: Any, prompts: dict[str, list[int]], wants: dict[str, torch.Tensor], chunk: int,
    beside: dict[str, list[int]],
) -> dict[str, list[int]]:  # fmt: skip
    """Prefill all of ``prompts`` together in chunks, while those in ``beside`` decode; the tokens
    of both. Compares every logit of the prompts."""
    tokens = {key: list(found) for key, found in beside.items()}
    for start in range(0, max(map(len, prompts.values())), chunk):
        works = [Work(key, [NO_TOKEN]) for key in beside]
        parts = {k: p[start : start + chunk] for k, p in prompts.items() if start < len(p)}
        works += [Work(k, part, start + chunk >= len(prompts[k])) for k, part in parts.items()]
        sampled = driver.run(*works)
        for work, token in zip(works, sampled, strict=True):
            if work.sample:
                tokens.setdefault(work.name, []).append(token)
        rows = iter(driver.all_logits())
        ordered = [w for w in works if len(w.tokens) == 1] + [w for w in works if len(w.tokens) > 1]
        for work in ordered:
            ours = torch.stack([next(rows) for _ in work.tokens])
            if work.name in parts:
                want = wants[work.name][start : start + len(work.tokens)]
                assert_close(ours, want, f"{work.name} from {start}")
    return tokens


def decode(driver: Any, tokens: dict[str, list[int]]) -> None:
    for key, token in zip(tokens, driver.run(*(Work(k, [NO_TOKEN]) for k in tokens)), strict=True):
        tokens[key].append(token)


INVOCATION = [7, 11, 13]


def last_start(tokens: list[int]) -> int:
    """Where the last invocation in ``tokens`` begins: PEFT's rule, told again."""
    size = len(INVOCATION)
    return max(i for i in range(len(tokens)) if tokens[i : i + size] == INVOCATION)


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_activated_over_three_turns(
    family: str, oracles: dict[str, Oracle], make_driver: Any
) -> None:
    """Each turn begins with all that was said, runs it on the base up to its own invocation, and on
    the adapter from there: PEFT finds the same place, and gives the same logits."""
    oracle = oracles[family]
    path = oracle.add("activated", alora_invocation_tokens=INVOCATION, target_modules="all-linear")
    loaded = load_model(oracle.folder / "base")
    driver = make_driver(loaded.model, num_pages=600, block_size=16)
    adapter = packed(path, loaded, driver)
    assert adapter.invocation_tokens == tuple(INVOCATION)
    driver.load("it", adapter)
    history: list[int] = []
    for turn in range(3):
        history += prompt_of(40 + turn, 19) + INVOCATION + prompt_of(50 + turn, 4)
        start, length = last_start(history), len(history)
        want = oracle.logits("activated", history)  # PEFT looks for the invocation itself
        assert float((want - oracle.logits(None, history))[start:].abs().max()) > 0.01
        for name, chunk in ((f"whole{turn}", length), (f"chunks{turn}", 5)):
            driver.add(name, length + NEW, adapter="it", adapter_from=start)
            assert_close(driver.feed(name, history, chunk), want, f"{name}, turn {turn}")
        tokens = driver.greedy(f"whole{turn}", int(driver.output.token_ids[0]), NEW)
        want = oracle.logits("activated", history + tokens, start)[length - 1 : -1]
        assert_greedy(want, tokens, f"turn {turn}")
        history += tokens
