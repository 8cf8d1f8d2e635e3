"""What is refused, and by which words; what is accepted, in every spelling."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scalesim.errors import ConfigError, UnsupportedModelError, WeightsError
from scalesim.model.checkpoint.config import ExpertsConfig, ModelConfig, parse_config
from scalesim.model.checkpoint.families import FAMILIES
from scalesim.model.checkpoint.loader import load_model
from scalesim.model.layers.rope import RopeConfig
from tests.model_folders import to_json, write_dummy_model


@pytest.fixture
def folder(tiny_config: ModelConfig, tmp_path: Path) -> Path:
    return write_dummy_model(tmp_path / "model", tiny_config)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def shard(folder: Path, names: tuple[str, str] = ("one.safetensors", "two.safetensors")) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: names[i % 2] for i, name in enumerate(sorted(tensors))}
    for file in set(names):
        part = {name: tensors[name] for name, where in weight_map.items() if where == file}
        if "/" not in file:
            save_file(part, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def rewrite(folder: Path, drop: str = "", **added: torch.Tensor) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(drop, None)
    save_file({**tensors, **added}, folder / "model.safetensors")


def test_a_dummy_folder_loads_as_it_was_made(folder: Path, tiny_config: ModelConfig) -> None:
    loaded = load_model(folder)
    assert loaded.config == tiny_config
    assert loaded.folder == folder
    random = load_model(folder, dummy_weights=True)
    assert torch.equal(random.model.weights.lm_head, loaded.model.weights.lm_head)
    other = load_model(folder, dummy_weights=True, seed=1)
    assert not torch.equal(other.model.weights.lm_head, loaded.model.weights.lm_head)


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig(5e5),
        RopeConfig(1e4, "linear", 4.0),
        RopeConfig(1e4, "dynamic", 4.0),
        RopeConfig(1e4, "llama3", 8.0, 1.0, 4.0, 99),
        RopeConfig(1e4, "yarn", 4.0, original_max_position=99, attention_factor=1.2, beta_fast=9.0),
        RopeConfig(
            1e4,
            "longrope",
            2.0,
            original_max_position=999,
            attention_factor=1.5,
            short_factors=(1.0,) * 8,
        ),
    ],
)
def test_json_round_trip(tiny_config: ModelConfig, architecture: str, rope: RopeConfig) -> None:
    family = FAMILIES[architecture]
    config = replace(
        tiny_config, architecture=architecture, rope=rope, qkv_bias=family.bias,
        qk_norm=family.qk_norm != "none", eos_token_ids=(3, 5), bos_token_id=1,
        tie_embeddings=not family.tied, query_scalar=48, logit_soft_cap=20.0,
        soft_cap=30.0 if family.model_type == "gemma2" else None,
        windows={"none": (), "all": (48, 48)}.get(family.windows, (None, 48)),
        local_rope=RopeConfig(123.0) if family.local_rope else None,
        experts=ExpertsConfig(4, 2, 24, True, (1,)) if family.experts else None,
    )  # fmt: skip
    assert parse_config(to_json(config)) == config


def test_old_and_new_spelling_agree(tiny_config: ModelConfig) -> None:
    new = to_json(replace(tiny_config, rope=RopeConfig(7e4, "llama3", 8.0, 1.0, 4.0, 64)))
    old = {k: v for k, v in new.items() if k not in ("rope_parameters", "dtype")}
    old["torch_dtype"] = "float32"
    rope = dict(new["rope_parameters"])
    old["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    assert parse_config({**old, "rope_scaling": rope}) == parse_config(new)


def test_end_of_sequence_ids_are_those_of_generation_config(folder: Path) -> None:
    """As in transformers; config.json's count where that file names none."""
    edit(folder, eos_token_id=7)
    path = folder / "generation_config.json"
    for text, want in (
        ('{"eos_token_id": [9, 11, 9]}', (9, 11)),
        ('{"eos_token_id": 9}', (9,)),
        ('{"eos_token_id": null}', (7,)),
        ("{}", (7,)),
    ):
        path.write_text(text)
        assert ModelConfig.from_folder(folder).eos_token_ids == want
    path.unlink()
    assert ModelConfig.from_folder(folder).eos_token_ids == (7,)


MISTRAL = {"architectures": ["MistralForCausalLM"]}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*LlamaForCausalLM, MistralFor"),
        ({"architectures": None}, "none named"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_window"),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 64,
                "max_window_layers": 0,
                "layer_types": None,
            },
            "sliding_window 64 is in use: llama has full attention only",
        ),
        ({**MISTRAL, "sliding_window": 0}, "sliding_window is 0; must be a positive integer"),
        ({**QWEN3, "layer_types": ["sliding_attention"]}, "layer_types names 1 layers of 2"),
        ({**QWEN3, "layer_types": ["linear_attention"] * 2}, "layer type 'linear_attention'"),
        (
            {**QWEN3, "layer_types": ["sliding_attention"] * 2, "sliding_window": None},
            "sliding_window is missing",
        ),
        ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping in llama"),
        ({"use_bidirectional_attention": True}, "only causal"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "by layer type"),
        ({"rope_parameters": {"rope_type": "axial", "factor": 4}}, "rope type 'axial'.*llama3"),
        (
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]}},
            "'longrope' needs long_factor",
        ),
        (
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "short_factor": [1.0],
                    "long_factor": [1.0],
                }
            },
            "short_factor has 1 numbers; head_dim 16 wants 8",
        ),
        ({"rope_parameters": {"rope_type": "linear"}}, "'linear' needs factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple .* 3"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"hidden_size": -4}, "hidden_size is -4"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"dtype": "float8_e4m3fn"}, "float8"),
    ],
)
def test_unsupported_configs(folder: Path, changes: dict[str, Any], words: str) -> None:
    edit(folder, **changes)
    with pytest.raises(UnsupportedModelError, match=words):
        load_model(folder, model_impl="native")


def test_how_far_a_rotation_reaches(folder: Path) -> None:
    long = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    for rope, want in (
        ({"rope_type": "dynamic", "factor": 4.0}, 512),  # from there on it would change
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({**long, "original_max_position_embeddings": 128}, 128),
    ):
        edit(folder, rope_parameters=rope)
        assert ModelConfig.from_folder(folder).max_position == want


def test_code_that_a_folder_brings_is_not_run(folder: Path) -> None:
    edit(folder, auto_map={"AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('it was run')")
    load_model(folder)


def test_an_unused_sliding_window_is_fine(folder: Path) -> None:
    edit(folder, use_sliding_window=True, sliding_window=64, max_window_layers=2)
    load_model(folder)
    edit(folder, use_sliding_window=False, max_window_layers=0)
    load_model(folder)


def test_dtypes(folder: Path) -> None:
    assert load_model(folder, dtype="bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="dtype 'int8'"):
        load_model(folder, dtype="int8")


def test_no_such_folder(tmp_path: Path) -> None:
    for name in (str(tmp_path / "no"), "./no", "a/b/c"):
        with pytest.raises(WeightsError, match="no such model folder"):
            load_model(name)


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import errors

    def offline(*args: Any, **kwargs: Any) -> str:
        raise errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(WeightsError, match=r"'some/model' is no local folder.*cannot be reached"):
        load_model("some/model")


def test_no_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="is not JSON"):
        load_model(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match="holds a list"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"config\.json is missing"):
        load_model(folder)


def test_no_weights_or_pickles_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"holds neither model\.safetensors nor"):
        load_model(folder)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(WeightsError, match=r"pickled weights only \(pytorch_model.bin\)"):
        load_model(folder)


def test_not_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(WeightsError, match="is not a readable safetensors file"):
        load_model(folder)


def test_missing_misshaped_and_unknown_tensors(folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(folder, **{name: torch.zeros(3, 64)})
    with pytest.raises(WeightsError, match=rf"{name}' has shape \[3, 64\].*\[160, 64\]"):
        load_model(folder)
    rewrite(folder, drop=name)
    with pytest.raises(WeightsError, match=f"{name}' is missing"):
        load_model(folder)
    rewrite(
        folder, **{name: torch.zeros(160, 64), "model.layers.0.rotary_emb.inv_freq": torch.ones(8)}
    )
    load_model(folder)
    rewrite(folder, **{"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)})
    with pytest.raises(WeightsError, match=r"q_proj.bias' is not part of this architecture"):
        load_model(folder)


EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize("kept", [(EMBED,), (HEAD,), (EMBED, HEAD)])
def test_tied_embeddings(folder: Path, kept: tuple[str, ...]) -> None:
    """One matrix under either name, or twice."""
    edit(folder, tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    matrix = tensors[EMBED]
    for name in (EMBED, HEAD):
        tensors.pop(name)
    tensors |= {name: matrix.clone() for name in kept}
    save_file(tensors, folder / "model.safetensors")
    weights = load_model(folder).model.weights
    assert weights.lm_head is weights.embed
    assert torch.equal(weights.embed, matrix)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_head_of_its_own_is_kept_whatever_the_config_says(
    folder: Path, architecture: str, tiny_config: ModelConfig
) -> None:
    family = FAMILIES[architecture]
    config = replace(
        tiny_config,
        architecture=architecture,
        qkv_bias=family.bias,
        qk_norm=family.qk_norm != "none",
        local_rope=RopeConfig(1e4) if family.local_rope else None,
        experts=ExpertsConfig(4, 2, 24, True, (1,)) if family.experts else None,
    )
    write_dummy_model(folder, config)
    stored = load_file(folder / "model.safetensors")
    edit(folder, tie_word_embeddings=True)
    loaded = load_model(folder)
    assert torch.equal(loaded.model.weights.lm_head, stored[HEAD])
    assert torch.equal(loaded.model.weights.embed, stored[EMBED])
    assert loaded.config.tie_embeddings is False


def test_shards(folder: Path) -> None:
    whole = load_model(folder).model.weights
    shard(folder)
    parts = load_model(folder).model.weights
    assert torch.equal(whole.layers[1].qkv.weight, parts.layers[1].qkv.weight)
    (folder / "two.safetensors").rename(folder / "gone")
    with pytest.raises(WeightsError, match=r"two.safetensors is missing"):
        load_model(folder)
    shutil.copy(folder / "one.safetensors", folder / "two.safetensors")
    with pytest.raises(WeightsError, match=r"two.safetensors lacks tensor '.*', which the index"):
        load_model(folder)


@pytest.mark.parametrize(
    "name", ["../out.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ""]
)
def test_index_entries_that_lead_elsewhere(folder: Path, name: str) -> None:
    shard(folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = name
    path.write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="only plain file names are accepted"):
        load_model(folder)
    path.write_text('{"weight_map": {}}')
    with pytest.raises(WeightsError, match="has no weight_map"):
        load_model(folder)


def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "outside")
    (folder / "model.safetensors").symlink_to(tmp_path / "outside")
    with pytest.raises(WeightsError, match="outside the model's folder"):
        load_model(folder)


def test_the_hub_cache_layout_is_accepted(folder: Path, tmp_path: Path) -> None:
    repo = tmp_path / "models--some--model"
    snapshot = repo / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for file in list(folder.iterdir()):
        file.rename(repo / "blobs" / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob-{file.name}")
    load_model(snapshot)
