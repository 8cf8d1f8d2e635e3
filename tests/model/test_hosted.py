"""Models that only transformers has, on our pages: its logits, our texts, and what is refused."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scalesim_kernels import select

from scalesim.errors import AdapterError, ConfigError, UnsupportedModelError, WeightsError
from scalesim.model.checkpoint.loader import LoadedModel, load_model
from scalesim.model.checkpoint.quantize import with_quantized
from scalesim.model.layers.hosted import HostedModel
from tests.engine.world import TOKENIZER
from tests.model_folders import write_dummy_model

from .conftest import TINY
from .pressure import FULL, check_texts, engine_of
from .test_against_transformers import assert_close, assert_greedy, oracle_logits

VOCAB, PROMPT, NEW = TOKENIZER.vocab_size, 75, 20
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 512, "eos_token_id": None, "bos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip
GROUPED = {"intermediate_size": 104, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "GPTNeoX": {"intermediate_size": 104, "rotary_pct": 0.5},  # parallel, layer norms, fused heads
    "StableLm": GROUPED,  # partial rotation
    "Starcoder2": {**GROUPED, "sliding_window": 20},
    "Cohere": GROUPED,  # one norm a layer, scaled logits, interleaved rotation
    "OPT": {"ffn_dim": 96, "word_embed_proj_dim": 64},  # learned positions
}


@cache
def saved(family: str) -> tuple[Path, Any]:
    """A random model of this family, saved; and itself."""
    torch.manual_seed(5)
    config = getattr(transformers, f"{family}Config")(**COMMON, **FAMILIES[family])
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    folder = Path(mkdtemp(prefix="scalesim-test-"))
    model.save_pretrained(folder)
    return folder, model


@cache
def hosted(family: str) -> LoadedModel:
    return load_model(saved(family)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_tokens(family: str, make_driver: Any) -> None:
    _, oracle = saved(family)
    assert hosted(family).implementation == "transformers"
    driver = make_driver(hosted(family).model)
    prompt = np.random.default_rng(1).integers(0, VOCAB, PROMPT).tolist()
    want = oracle_logits(oracle, prompt)
    driver.add("whole", PROMPT + NEW)
    whole = driver.feed("whole", prompt)
    first = int(driver.output.token_ids[0])
    assert_close(whole, want, "whole prefill")
    driver.add("chunks", PROMPT + NEW)
    assert torch.equal(driver.feed("chunks", prompt, chunk=7), whole)
    blocks = (PROMPT - 1) // driver.geometry.block_size
    driver.add("cached", PROMPT + NEW, shared="whole", shared_blocks=blocks)
    rest = blocks * driver.geometry.block_size
    assert torch.equal(driver.feed("cached", prompt[rest:]), whole[rest:])
    driver.move("chunks")
    for name in ("whole", "chunks", "cached"):
        assert_greedy(oracle, prompt, driver.greedy(name, first, NEW))


@pytest.mark.parametrize("family", ["GPTNeoX", "StableLm", "Starcoder2"])
def test_texts_do_not_depend_on_memory(family: str) -> None:
    check_texts(hosted(family))


def test_adapters_are_refused() -> None:
    folder, _ = saved("StableLm")
    with (
        engine_of(hosted("StableLm"), FULL, "resident") as engine,
        pytest.raises(AdapterError, match="adapters are run on native models only"),
    ):
        engine.adapters.add("any", folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str, make_driver: Any) -> None:
    folder, oracle = saved("StableLm")
    driver = make_driver(load_model(folder, dtype=dtype).model)
    prompt = np.random.default_rng(1).integers(0, VOCAB, PROMPT).tolist()
    driver.add("x", PROMPT)
    want = oracle_logits(oracle, prompt)
    assert (driver.feed("x", prompt, chunk=33) - want).abs().max() < 0.25 * want.std()


def test_two_engines_share_the_weights_and_nothing_else() -> None:
    model = hosted("StableLm").model
    assert isinstance(model, HostedModel)
    one, other = model.packed(select("reference")), model.packed(select("reference"))
    assert one.layers is not other.layers is not model.layers
    weights = [each.hf_model.get_input_embeddings().weight for each in (one, other)]
    assert weights[0] is weights[1]


def test_a_native_model_can_be_hosted_too(tmp_path: Path, make_driver: Any) -> None:
    folder = write_dummy_model(tmp_path / "llama", TINY)
    prompt = np.random.default_rng(1).integers(0, TINY.vocab_size, PROMPT).tolist()
    found = []
    for model_impl in ("native", "transformers"):
        loaded = load_model(folder, model_impl=model_impl)
        assert loaded.implementation == model_impl
        driver = make_driver(loaded.model)
        driver.add("x", PROMPT)
        found.append(driver.feed("x", prompt))
    assert_close(found[0], found[1], "native and hosted")
    assert load_model(folder).implementation == "native"


def test_dummy_weights_repeat() -> None:
    folder = saved("StableLm")[0]
    one, other, third = (load_model(folder, dummy_weights=True, seed=s).model for s in (1, 1, 2))
    weights = [each.hf_model.lm_head.weight for each in (one, other, third)]  # type: ignore[attr-defined]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def write_config(folder: Path, raw: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "an encoder and a decoder"),
        ({"model_type": "llava", "vision_config": {}}, "multi-modal"),
        (
            {"model_type": "mine", "auto_map": {"AutoModel": "a.B"}},
            r"code \(auto_map\), which is n",
        ),
        ({"model_type": "mine"}, "no causal language model of the installed transformers; a newer"),
        ({"model_type": "gpt2", "quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"model_type": "gpt2", "layer_types": ["linear_attention"]}, "type 'linear_attention'"),
    ],
)
def test_what_a_config_is_refused_for(raw: dict[str, Any], words: str, tmp_path: Path) -> None:
    names = {"gpt2": "GPT2LMHeadModel", "t5": "T5ForConditionalGeneration"}
    name = names.get(raw["model_type"], "MyForCausalLM")
    write_config(tmp_path, {"architectures": [name], **raw})
    with pytest.raises(UnsupportedModelError, match=f"(?s)neither path.*Transformers: .*{words}"):
        load_model(tmp_path)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("Falcon", {}, "has an attention of its own that cannot be replaced"),
    ("Mamba", {"state_size": 4}, "0 of 3 layers have attention .* is not KV"),
    (
        "GptOss",
        {**GROUPED, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        "layer 0 gives its attention s_aux",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("family", "options", "words"), REFUSED, ids=lambda value: str(value)[:9])
def test_what_a_model_is_refused_for(
    family: str, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    config = getattr(transformers, f"{family}Config")(**COMMON, **options)
    config.architectures = [f"{family}ForCausalLM"]
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=words):
        load_model(tmp_path, dummy_weights=True)


def test_a_model_that_needs_more_than_kv_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say, one that counts its tokens itself: in chunks, its positions start anew."""
    from scalesim.model.layers import hosted as module

    run = module.HostedModel.run

    def forgetful(self: Any, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return run(self, token_ids, torch.arange(len(positions)))

    monkeypatch.setattr(module.HostedModel, "run", forgetful)
    with pytest.raises(UnsupportedModelError, match="depend on more than tokens, positions and KV"):
        load_model(saved("StableLm")[0])


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder, _ = saved("StableLm")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"missing keys in .*layers\.1\.mlp\.up_proj"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(WeightsError, match="pickled weights only"):
        load_model(tmp_path)


@pytest.mark.parametrize("scheme", ["int8", "float8"])
@pytest.mark.parametrize("family", ["Llama", "StableLm"])
def test_eight_bits(family: str, scheme: str, tmp_path: Path, make_driver: Any) -> None:
    """Close to the whole weights, not the same; the same bits however the prompt is cut."""
    native = family == "Llama"
    folder = write_dummy_model(tmp_path / "llama", TINY) if native else saved(family)[0]
    prompt = np.random.default_rng(1).integers(0, TINY.vocab_size, PROMPT).tolist()
    results = []
    for quantize, chunk in ((None, PROMPT), (scheme, PROMPT), (scheme, 7)):
        loaded = load_model(folder, quantize=quantize)
        driver = make_driver(loaded.model, kernels=with_quantized(select("cpu")))
        driver.add("x", PROMPT)
        results.append(driver.feed("x", prompt, chunk=chunk))
    whole, rounded, chunks = results
    error = float((rounded - whole).abs().mean() / whole.std())
    assert 1e-4 < error < (0.05 if scheme == "int8" else 0.2)
    assert torch.equal(rounded, chunks)


def test_an_unknown_scheme() -> None:
    with pytest.raises(ConfigError, match="quantize='int3': must be one of int8, float8"):
        load_model(saved("GPTNeoX")[0], quantize="int3")


def test_the_knob() -> None:
    folder, _ = saved("GPTNeoX")
    with pytest.raises(UnsupportedModelError, match="GPTNeoXForCausalLM is not native"):
        load_model(folder, model_impl="native")
    with pytest.raises(ConfigError, match="model_impl 'vllm': must be one of auto, native, trans"):
        load_model(folder, model_impl="vllm")
