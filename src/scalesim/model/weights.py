"""Which tensors a checkpoint must hold, by name and shape, and how the decoder keeps them.

The decoder merges Q, K, V and gate, up into one matrix each: fewer, larger matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from scalesim.model.config import ModelConfig

Shape: TypeAlias = tuple[int, ...]
Take: TypeAlias = Callable[[str], Tensor]
"""Gives a checkpoint's tensor by name, in the wanted dtype; each name is asked for once."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. Matrices are ``[out, in]``, C-contiguous."""

    input_norm: Tensor  # [hidden]
    qkv: Tensor  # [(num_heads + 2 * num_kv_heads) * head_dim, hidden]
    qkv_bias: Tensor | None
    q_norm: Tensor | None  # [head_dim]
    k_norm: Tensor | None  # [head_dim]
    o: Tensor  # [hidden, num_heads * head_dim]
    o_bias: Tensor | None
    post_norm: Tensor  # [hidden]
    gate_up: Tensor  # [2 * intermediate, hidden]
    gate_up_bias: Tensor | None
    down: Tensor  # [hidden, intermediate]
    down_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Weights:
    embed: Tensor  # [vocab, hidden]
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # [hidden]
    lm_head: Tensor  # [vocab, hidden]; the same tensor as ``embed`` when tied

    def packed(self, pack: Callable[[Tensor], Tensor]) -> Weights:
        """With every matrix that a linear layer multiplies by in another form."""
        layers = tuple(
            replace(
                layer,
                qkv=pack(layer.qkv),
                o=pack(layer.o),
                gate_up=pack(layer.gate_up),
                down=pack(layer.down),
            )
            for layer in self.layers
        )
        return replace(self, layers=layers, lm_head=pack(self.lm_head))


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of a checkpoint of this config, in the layout of its files."""
    shapes: dict[str, Shape] = {
        "model.embed_tokens.weight": (config.vocab_size, config.hidden_size)
    }
    for layer in range(config.num_layers):
        for name, shape in _layer_shapes(config).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    shapes["model.norm.weight"] = (config.hidden_size,)
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    return shapes


def _layer_shapes(config: ModelConfig) -> dict[str, Shape]:
    hidden, wide = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, Shape] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    for name, out, width, bias in (
        ("self_attn.q_proj", q, hidden, config.qkv_bias),
        ("self_attn.k_proj", kv, hidden, config.qkv_bias),
        ("self_attn.v_proj", kv, hidden, config.qkv_bias),
        ("self_attn.o_proj", hidden, q, config.o_bias),
        ("mlp.gate_proj", wide, hidden, config.mlp_bias),
        ("mlp.up_proj", wide, hidden, config.mlp_bias),
        ("mlp.down_proj", hidden, wide, config.mlp_bias),
    ):
        shapes[f"{name}.weight"] = (out, width)
        if bias:
            shapes[f"{name}.bias"] = (out,)
    if config.qk_norm:
        shapes["self_attn.q_norm.weight"] = (config.head_dim,)
        shapes["self_attn.k_norm.weight"] = (config.head_dim,)
    return shapes


def assemble(config: ModelConfig, take: Take) -> Weights:
    """Build the decoder's weights from a checkpoint's tensors, layer by layer."""
    embed = take("model.embed_tokens.weight")
    layers = tuple(_layer(config, take, f"model.layers.{i}.") for i in range(config.num_layers))
    lm_head = embed if config.tie_embeddings else take("lm_head.weight")
    return Weights(embed, layers, take("model.norm.weight"), lm_head)


def _layer(config: ModelConfig, take: Take, prefix: str) -> LayerWeights:
    def join(names: str, kind: str) -> Tensor:
        parts = [take(f"{prefix}{name}_proj.{kind}") for name in names.split()]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def bias(names: str, present: bool) -> Tensor | None:
        return join(names, "bias") if present else None

    def norm(name: str) -> Tensor | None:
        return take(f"{prefix}self_attn.{name}.weight") if config.qk_norm else None

    qkv, gate_up = "self_attn.q self_attn.k self_attn.v", "mlp.gate mlp.up"
    return LayerWeights(
        input_norm=take(f"{prefix}input_layernorm.weight"),
        qkv=join(qkv, "weight"),
        qkv_bias=bias(qkv, config.qkv_bias),
        q_norm=norm("q_norm"),
        k_norm=norm("k_norm"),
        o=join("self_attn.o", "weight"),
        o_bias=bias("self_attn.o", config.o_bias),
        post_norm=take(f"{prefix}post_attention_layernorm.weight"),
        gate_up=join(gate_up, "weight"),
        gate_up_bias=bias(gate_up, config.mlp_bias),
        down=join("mlp.down", "weight"),
        down_bias=bias("mlp.down", config.mlp_bias),
    )
