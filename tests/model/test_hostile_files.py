"""Files from strangers: whatever stands in them, a model either runs or is refused by a typed error
that names the file, and nothing waits or takes memory first."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scalesim.engine.build import text_of
from scalesim.errors import ScaleSimError, UnsupportedModelError, WeightsError
from scalesim.model.adapters.peft import read_adapter
from scalesim.model.checkpoint.config import ExpertsConfig, parse_config
from scalesim.model.checkpoint.families import FAMILIES
from scalesim.model.checkpoint.loader import load_model
from scalesim.model.layers.rope import RopeConfig
from scalesim.model.text.chat import chosen_chat_template
from scalesim.sampling.model_defaults import sampling_defaults
from tests.model.adapter_folders import write_adapter
from tests.model.conftest import TINY
from tests.model_folders import to_json, write_dummy_model

HOSTILE: list[Any] = [
    None, True, False, [], {}, [[]], [None], {"a": None}, "", "x", "x" * 5000, "1e-6", -1, 0, 0.5,
    3, 1e300, -1e300, float("inf"), float("nan"), 2**31, 2**70, 10**12, 10**400,
    [1, None], ["x"] * 3, [10**12] * 2,
    {"rope_type": "yarn", "factor": 10**400}, {"full_attention": []},
]  # fmt: skip
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
ROPES: list[dict[str, Any]] = [
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.0, "beta_fast": 32, "beta_slow": 1,
     "mscale": 1.0, "mscale_all_dim": 1.0, "truncate": True,
     "original_max_position_embeddings": 64},
    {**LONGROPE, "factor": 2.0, "original_max_position_embeddings": 64},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
]  # fmt: skip


def raw_config(architecture: str) -> dict[str, Any]:
    family = FAMILIES[architecture]
    config = replace(
        TINY, architecture=architecture, qkv_bias=family.bias, qk_norm=family.qk_norm != "none",
        eos_token_ids=(3, 5), bos_token_id=1, tie_embeddings=family.tied,
        local_rope=RopeConfig(1e4) if family.local_rope else None,
        experts=ExpertsConfig(4, 2, 24, True, (1,)) if family.experts else None,
    )  # fmt: skip
    more: dict[str, Any] = {
        "use_sliding_window": False, "max_window_layers": 2, "sliding_window_pattern": 6,
        "decoder_sparse_step": 1, "rope_theta": 1e4, "rope_scaling": None, "torch_dtype": "float32",
        "rope_local_base_freq": 1e4, "partial_rotary_factor": 1.0, "num_local_experts": 4,
        "original_max_position_embeddings": 64, "quantization_config": None,
        "use_bidirectional_attention": False, "is_encoder_decoder": False,
    }  # fmt: skip
    if family.activation == "gelu_tanh":
        more["hidden_activation"] = "gelu_pytorch_tanh"
    return {**more, **to_json(config)}


@pytest.mark.parametrize("architecture", FAMILIES)
def test_any_value_of_any_field_of_a_config(architecture: str) -> None:
    """Each field of a good config, and each of its rotation's, becomes each hostile value."""
    good = raw_config(architecture)
    assert parse_config(good).architecture == architecture
    refused = 0
    for key in good:
        for value in HOSTILE:
            refused += is_refused({**good, key: value}, key)
    assert refused > 200
    if good["rope_parameters"].get("rope_type"):
        for rope in ROPES:
            assert not is_refused({**good, "rope_parameters": rope}, "rope_parameters")
            for key in rope:
                for value in HOSTILE:
                    is_refused({**good, "rope_parameters": {**rope, key: value}}, key)


def is_refused(raw: dict[str, Any], key: str) -> bool:
    try:
        config = parse_config(raw)
    except UnsupportedModelError as error:
        assert 0 < len(str(error)) < 600
        return True
    assert config.num_layers <= 4096 and config.head_dim <= 1 << 14, key
    return False


def test_the_refusal_names_file_key_value_and_rule() -> None:
    raw = raw_config("LlamaForCausalLM")
    for key, value, words in (
        ("num_hidden_layers", 10**12, r"config\.json: num_hidden_layers is 1000000000000; must be a"
         r" positive integer, at most 4096"),
        ("rms_norm_eps", None, r"config\.json: rms_norm_eps is null; must be a number"),
        ("tie_word_embeddings", "false", r"tie_word_embeddings is 'false'; must be true or false"),
        ("rope_scaling", 5, r"rope_scaling is 5; must be an object"),
    ):  # fmt: skip
        with pytest.raises(UnsupportedModelError, match=words):
            parse_config({**raw, key: value})


NULL_MEANS_DEFAULT = (
    "head_dim", "num_key_value_heads", "rope_scaling", "sliding_window", "eos_token_id",
    "bos_token_id", "attention_bias", "quantization_config", "dtype",
)  # fmt: skip


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM"])
def test_null_where_transformers_takes_it_for_the_default(architecture: str) -> None:
    raw = raw_config(architecture)
    for key in NULL_MEANS_DEFAULT:
        without = {name: value for name, value in raw.items() if name != key}
        assert parse_config({**raw, key: None}) == parse_config(without), key


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_field_left_out_means_what_it_means_to_transformers(architecture: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(FAMILIES[architecture].model_type)
    raw = raw_config(architecture)
    for name in (
        "rms_norm_eps", "tie_word_embeddings", "query_pre_attn_scalar", "attn_logit_softcapping",
        "final_logit_softcapping", "norm_topk_prob",
    ):  # fmt: skip
        raw.pop(name, None)
    ours = parse_config(raw)
    assert ours.rms_eps == theirs.rms_norm_eps
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    assert ours.query_scalar == getattr(theirs, "query_pre_attn_scalar", None)
    assert ours.soft_cap == getattr(theirs, "attn_logit_softcapping", None)
    assert ours.logit_soft_cap == getattr(theirs, "final_logit_softcapping", None)


# -- whole folders ----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_dummy_model(tmp_path / "model", TINY)


TEXTS = {
    "deep": "[" * 100_000,
    "deep object": '{"a":' * 500 + "1" + "}" * 500,
    "a long number": '{"a": ' + "9" * 5000 + "}",
    "not UTF-8": b"\xff\xfe{}",
    "a list": "[]",
    "cut": '{"a": ',
    "empty": "",
    "a key twice": '{"architectures": ["A"], "architectures": ["B"]}',
    "a surrogate": '{"weight_map": {"a": "\\ud800"}, "eos_token": 5, "eos_token_id": "\\ud800"}',
    "a long name": '{"weight_map": {"a": "'
    + "a" * 5000 + '"}, "eos_token": 5, "eos_token_id": 0.5}',
}  # fmt: skip
FILES = ("config.json", "generation_config.json", "model.safetensors.index.json",
         "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")  # fmt: skip


def load_all(folder: Path) -> None:
    load_model(folder)
    sampling_defaults(folder)
    tokenizer = text_of(folder)
    chosen_chat_template(None, folder, {} if tokenizer is None else tokenizer.special_tokens)


def with_tokenizer(folder: Path) -> None:
    from tests.text.tokenizers_made_here import byte_level

    byte_level().save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("text", TEXTS)
def test_files_that_are_no_good_json(folder: Path, name: str, text: str) -> None:
    with_tokenizer(folder)
    if name.endswith("index.json"):
        (folder / "model.safetensors").unlink()
    content = TEXTS[text]
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ScaleSimError):
        load_all(folder)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket is short
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)


NO_FILES: list[Callable[[Path], None]] = [fifo, device, loop, unix_socket, Path.mkdir, sparse]
READ = (
    "config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja",
)  # fmt: skip


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("make", NO_FILES)
def test_what_is_no_regular_file_is_refused_at_once(
    folder: Path, name: str, make: Callable[[Path], None]
) -> None:
    with_tokenizer(folder)
    if name == "model.safetensors.index.json":
        (folder / "model.safetensors").unlink()
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(ScaleSimError):
        load_all(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("make", NO_FILES)
def test_nor_is_it_in_an_adapter(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    folder = write_adapter(tmp_path / "a", TINY, 2)
    (folder / name).unlink()
    make(folder / name)
    with pytest.raises(ScaleSimError, match=f"adapter {folder}"):
        read_adapter(folder, TINY, torch.float32, 8192)


def test_any_value_of_any_field_of_an_adapter(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", TINY, 2)
    good = json.loads((folder / "adapter_config.json").read_text())
    fields = {*good, "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern",
              "alpha_pattern", "use_rslora", "alora_invocation_tokens"}  # fmt: skip
    rng = random.Random(0)
    for key in sorted(fields):
        for value in rng.sample(HOSTILE, 14):
            changed = {**good, key: value}
            if key == "layers_pattern":
                changed["layers_to_transform"] = [0]
            (folder / "adapter_config.json").write_text(json.dumps(changed))
            try:
                read_adapter(folder, TINY, torch.float32, 8192)
            except ScaleSimError as error:
                assert str(folder) in str(error)


def test_a_model_larger_than_the_machine_is_refused_before_it_is_made(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    del raw["layer_types"]
    raw |= {"num_hidden_layers": 4096, "hidden_size": 1 << 20, "intermediate_size": 1 << 20}
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(WeightsError, match=r"asks for \d+ bytes of weights .* this machine has"):
        load_model(folder, dummy_weights=True)


def test_layers_without_end_are_refused_on_the_other_path(folder: Path) -> None:
    pytest.importorskip("transformers")
    raw = {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox"}
    for change in ({"num_hidden_layers": 10**12}, {"hidden_size": 10**9}, {"vocab_size": 2**70}):
        (folder / "config.json").write_text(json.dumps({**raw, **change}))
        with pytest.raises(UnsupportedModelError, match=next(iter(change))):
            load_model(folder, dummy_weights=True)


# -- which tensor counts ----------------------------------------------------------------------

HEAD = "lm_head.weight"


def split(folder: Path, files: dict[str, dict[str, torch.Tensor]], index: dict[str, str]) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    for name, tensors in files.items():
        save_file(tensors, folder / name, {"format": "pt"})
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


@pytest.mark.parametrize("overlay", ["a.safetensors", "z.safetensors"])
def test_the_index_decides(folder: Path, overlay: str) -> None:
    """Whichever file comes first."""
    tensors = load_file(folder / "model.safetensors")
    files = {"m.safetensors": {**tensors, HEAD: -tensors[HEAD]}, overlay: {HEAD: tensors[HEAD]}}
    index = {name: overlay if name == HEAD else "m.safetensors" for name in tensors}
    split(folder, files, index)
    assert torch.equal(load_model(folder).model.weights.lm_head, tensors[HEAD])
    with pytest.raises(WeightsError, match=f"{HEAD}' is in several files"):
        load_model(folder, model_impl="transformers")
    del index[HEAD]
    index["model.norm.weight"] = overlay
    files[overlay]["model.norm.weight"] = tensors["model.norm.weight"]
    split(folder, files, index)
    with pytest.raises(WeightsError, match=f"{HEAD}' is in .* the index does not say which counts"):
        load_model(folder)


def test_a_tensor_that_the_index_forgot_is_found(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    split(folder, {"m.safetensors": tensors}, {"model.norm.weight": "m.safetensors"})
    assert torch.equal(load_model(folder).model.weights.lm_head, tensors[HEAD])


def test_one_file_goes_before_an_index(folder: Path) -> None:
    """As in transformers."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "kept").write_bytes((folder / "model.safetensors").read_bytes())
    split(
        folder,
        {"m.safetensors": {**tensors, HEAD: -tensors[HEAD]}},
        dict.fromkeys(tensors, "m.safetensors"),
    )
    (folder / "kept").rename(folder / "model.safetensors")
    assert torch.equal(load_model(folder).model.weights.lm_head, tensors[HEAD])


def test_a_base_models_names_are_the_same_tensors(folder: Path) -> None:
    """Saved without a head, as transformers' ``LlamaModel``: no ``model.`` before the names."""
    tensors = load_file(folder / "model.safetensors")
    base = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(base, folder / "model.safetensors", {"format": "pt"})
    weights = load_model(folder).model.weights
    assert torch.equal(weights.final_norm, tensors["model.norm.weight"])
    assert torch.equal(weights.lm_head, tensors[HEAD])
    both = {**base, "model.norm.weight": -tensors["model.norm.weight"]}
    save_file(both, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"'model\.norm\.weight' and 'norm\.weight' are both"):
        load_model(folder)


@pytest.mark.parametrize("impl", ["native", "transformers"])
@pytest.mark.parametrize(
    "dtype",
    [torch.int32, torch.int8, torch.uint8, torch.bool, torch.int64, torch.float8_e4m3fn,
     torch.float8_e5m2],
)  # fmt: skip
def test_only_floats_are_weights(folder: Path, dtype: torch.dtype, impl: str) -> None:
    if impl == "transformers":
        pytest.importorskip("transformers")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(
        {**tensors, name: tensors[name].to(dtype)}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(WeightsError, match=f"{name}' is stored as .*weights are F64"):
        load_model(folder, model_impl=impl)


def test_floats_of_any_width_may_be_mixed(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    widths = (torch.float64, torch.float16, torch.bfloat16, torch.float32)
    mixed = {name: t.to(widths[i % 4]) for i, (name, t) in enumerate(sorted(tensors.items()))}
    save_file(mixed, folder / "model.safetensors")
    weights = load_model(folder).model.weights
    assert torch.equal(weights.lm_head, mixed[HEAD].float())
    assert weights.layers[0].qkv.weight.dtype == torch.float32


def test_a_folder_with_a_tokenizer_is_good(folder: Path) -> None:
    """So that the refusals above are of what was put in."""
    with_tokenizer(folder)
    load_all(folder)
    shutil.rmtree(folder)
