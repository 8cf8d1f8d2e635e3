"""Models of random weights as folders, in Hugging Face's layout: for tests and benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from scalesim.model.checkpoint.config import ACTIVATIONS, LAYER_KINDS, ExpertsConfig, ModelConfig
from scalesim.model.checkpoint.dummy import dummy_tensors
from scalesim.model.layers.rope import RopeConfig


def write_dummy_model(folder: Path, config: ModelConfig, seed: int = 0) -> Path:
    """Write a folder that can be loaded: ``config.json`` and ``model.safetensors``."""
    write_config(folder, config)
    tensors = dummy_tensors(config, seed, getattr(torch, config.dtype))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_config(folder: Path, config: ModelConfig) -> None:
    """Write ``config.json`` alone, which is all that a model with dummy weights needs."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_json(config), indent=2)
    (folder / "config.json").write_text(text, encoding="utf-8")


def to_json(config: ModelConfig) -> dict[str, Any]:
    """The ``config.json`` of a config; ``parse_config`` reads it back as an equal config."""
    return {
        "architectures": [config.architecture],
        "model_type": config.family.model_type,
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
        "hidden_act": ACTIVATIONS[config.family.activation][0],
        "dtype": config.dtype,
        "eos_token_id": list(config.eos_token_ids) or None,
        "bos_token_id": config.bos_token_id,
        "attn_logit_softcapping": config.soft_cap,
        "final_logit_softcapping": config.logit_soft_cap,
        **_query_json(config),
        **_windows_json(config),
        **_experts_json(config.experts, config.num_layers),
        "rope_parameters": _ropes_json(config),
    }


def _query_json(config: ModelConfig) -> dict[str, Any]:
    """The query scalar, unless it is ``None`` and the family's default as well."""
    scalar = config.query_scalar
    if scalar is None and config.family.query_scalar is not None:
        scalar = config.head_dim
    return {} if scalar is None else {"query_pre_attn_scalar": scalar}


def _windows_json(config: ModelConfig) -> dict[str, Any]:
    full, sliding = LAYER_KINDS
    layers = [config.window_of(layer) for layer in range(config.num_layers)]
    return {
        "sliding_window": max((size for size in layers if size is not None), default=None),
        "layer_types": [full if size is None else sliding for size in layers],
    }


def _experts_json(experts: ExpertsConfig | None, num_layers: int) -> dict[str, Any]:
    if experts is None:
        return {}
    return {
        "num_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "moe_intermediate_size": experts.width,
        "norm_topk_prob": experts.normalize,
        "mlp_only_layers": [i for i in range(num_layers) if i not in experts.layers],
    }


def _ropes_json(config: ModelConfig) -> dict[str, Any]:
    if config.local_rope is None:
        return _rope_json(config.rope)
    ropes = (config.rope, config.local_rope)
    return {kind: _rope_json(rope) for kind, rope in zip(LAYER_KINDS, ropes, strict=True)}


def _rope_json(rope: RopeConfig) -> dict[str, Any]:
    settings: dict[str, Any] = {"rope_type": rope.type, "rope_theta": rope.theta}
    if rope.type != "default":
        settings["factor"] = rope.factor
    if rope.type in ("llama3", "yarn", "longrope"):
        settings["original_max_position_embeddings"] = rope.original_max_position
    names: tuple[str, ...] = ()
    if rope.type == "llama3":
        names = ("low_freq_factor", "high_freq_factor")
    elif rope.type == "yarn":
        names = ("attention_factor", "beta_fast", "beta_slow", "truncate")
    elif rope.type == "longrope":
        factors = list(rope.short_factors)
        settings |= {"short_factor": factors, "long_factor": factors}
        names = ("attention_factor",)
    return settings | {name: getattr(rope, name) for name in names}
