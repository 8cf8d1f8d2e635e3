"""Random models of any config: for tests, demos and ``--dummy-weights``. No file is needed.

The scale keeps a deep random model alive: norms near 1, matrices at ``1 / sqrt(in)``, and logits of
standard deviation about 2, neither flat nor one-hot.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scalesim.model.config import ModelConfig
from scalesim.model.rope import RopeConfig
from scalesim.model.weights import Shape, expected_shapes

LOGIT_STD = 2.0


def dummy_tensor(
    name: str, shape: Shape, seed: int, dtype: torch.dtype, place: str = "cpu"
) -> Tensor:
    """The same values for the same (name, shape, seed) and kind of ``place``, whatever else was
    made before."""
    generator = torch.Generator(place).manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
    values = torch.randn(shape, generator=generator, device=place)
    if name.endswith("norm.weight"):
        values = 1 + 0.1 * values
    elif name.endswith(".bias"):
        values = 0.1 * values
    elif not name.startswith("model.embed"):
        values = values * shape[-1] ** -0.5
    if name == "lm_head.weight":
        values = values * LOGIT_STD
    return values.to(dtype)


def dummy_tensors(
    config: ModelConfig, seed: int, dtype: torch.dtype, place: str = "cpu"
) -> dict[str, Tensor]:
    """Every tensor of a checkpoint of this config."""
    shapes = expected_shapes(config)
    tensors = {
        name: dummy_tensor(name, shape, seed, dtype, place) for name, shape in shapes.items()
    }
    if config.tie_embeddings:  # the embedding is the head too, and takes the head's scale
        tensors["model.embed_tokens.weight"] *= LOGIT_STD * config.hidden_size**-0.5
    return tensors


def write_dummy_model(folder: Path, config: ModelConfig, seed: int = 0) -> Path:
    """Write a loadable Hugging Face folder: ``config.json`` and ``model.safetensors``."""
    from safetensors.torch import save_file

    write_config(folder, config)
    tensors = dummy_tensors(config, seed, getattr(torch, config.dtype))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_config(folder: Path, config: ModelConfig) -> None:
    """``config.json`` alone: all that a model with dummy weights needs."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_json(config), indent=2)
    (folder / "config.json").write_text(text, encoding="utf-8")


def to_json(config: ModelConfig) -> dict[str, Any]:
    """``config.json`` of a config: what ``parse_config`` reads back as an equal one."""
    return {
        "architectures": [config.architecture],
        "model_type": config.architecture.removesuffix("ForCausalLM").lower(),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position,
        "rms_norm_eps": config.rms_eps,
        "attention_bias": config.o_bias or config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "dtype": config.dtype,
        "eos_token_id": list(config.eos_token_ids) or None,
        "bos_token_id": config.bos_token_id,
        "rope_parameters": _rope_json(config.rope),
    }


def _rope_json(rope: RopeConfig) -> dict[str, Any]:
    settings: dict[str, Any] = {"rope_type": rope.type, "rope_theta": rope.theta}
    if rope.type != "default":
        settings |= {"factor": rope.factor}
    if rope.type == "llama3":
        settings |= {
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_max_position,
        }
    return settings
