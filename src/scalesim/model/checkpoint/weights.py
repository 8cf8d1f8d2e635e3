"""The decoder's weights, and the names and shapes of the tensors that a checkpoint must hold.

The decoder merges Q, K, V into one matrix, and gate, up into another: fewer, larger products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from scalesim.model.checkpoint.config import ModelConfig

TensorShape: TypeAlias = tuple[int, ...]
Take: TypeAlias = Callable[[str], Tensor]
"""A function from a name to that tensor of a checkpoint, in the wanted dtype. Each name is asked
for once."""
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Pack: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class LayerNorms:
    """The norms of a layer, ``[hidden]`` each; places as in ``families.Norms``."""

    before_attention: Tensor | None
    after_attention: Tensor | None
    before_mlp: Tensor | None
    after_mlp: Tensor | None


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer: ``x @ weight.T + bias``."""

    weight: Tensor  # [out, in], C-contiguous
    bias: Tensor | None = None

    def packed(self, pack: Pack) -> Linear:
        return replace(self, weight=pack(self.weight))


@dataclass(frozen=True, slots=True)
class MlpWeights:
    gate_up: Linear  # [2 * intermediate, hidden]
    down: Linear  # [hidden, intermediate]

    def packed(self, pack: Pack) -> MlpWeights:
        return MlpWeights(self.gate_up.packed(pack), self.down.packed(pack))


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    router: Tensor  # [experts, hidden]
    experts: tuple[MlpWeights, ...]

    def packed(self, pack: Pack) -> ExpertWeights:
        experts = tuple(expert.packed(pack) for expert in self.experts)
        return ExpertWeights(pack(self.router), experts)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer."""

    norms: LayerNorms
    qkv: Linear  # [(num_heads + 2 * num_kv_heads) * head_dim, hidden]
    q_norm: Tensor | None  # [head_dim], or [num_heads * head_dim]
    k_norm: Tensor | None  # [head_dim], or [num_kv_heads * head_dim]
    o: Linear  # [hidden, num_heads * head_dim]
    mlp: MlpWeights | ExpertWeights

    def packed(self, pack: Pack) -> LayerWeights:
        qkv, o, mlp = self.qkv.packed(pack), self.o.packed(pack), self.mlp.packed(pack)
        return replace(self, qkv=qkv, o=o, mlp=mlp)


@dataclass(frozen=True, slots=True)
class Weights:
    embed: Tensor  # [vocab, hidden]
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # [hidden]
    lm_head: Tensor  # [vocab, hidden]; the same tensor as ``embed`` when tied

    def packed(self, pack: Pack) -> Weights:
        """The same weights with ``pack`` applied to the matrix of every linear layer."""
        layers = tuple(layer.packed(pack) for layer in self.layers)
        return replace(self, layers=layers, lm_head=pack(self.lm_head))


def expected_shapes(config: ModelConfig) -> dict[str, TensorShape]:
    """Name and shape of every tensor of a checkpoint of this config, in the layout of its files."""
    shapes: dict[str, TensorShape] = {EMBED: (config.vocab_size, config.hidden_size)}
    for layer in range(config.num_layers):
        for name, shape in _layer_shapes(config, layer).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    shapes["model.norm.weight"] = (config.hidden_size,)
    if not config.tie_embeddings:
        shapes[HEAD] = (config.vocab_size, config.hidden_size)
    return shapes


def num_elements(config: ModelConfig) -> int:
    """Number of elements of all weights."""
    return sum(math.prod(shape) for shape in expected_shapes(config).values())


def _layer_shapes(config: ModelConfig, layer: int) -> dict[str, TensorShape]:
    hidden, family = config.hidden_size, config.family
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, TensorShape] = {}
    for name in astuple(family.norms):
        if name is not None:
            shapes[f"{name}.weight"] = (hidden,)
    parts: list[tuple[str, int, int, bool]] = [("o", hidden, q, config.o_bias)]
    sizes = (("q", q), ("k", kv), ("v", kv))
    if family.fused:
        parts.append(("qkv", q + 2 * kv, hidden, config.qkv_bias))
    else:
        parts += [(name, out, hidden, config.qkv_bias) for name, out in sizes]
    for name, out, width, bias in parts:
        shapes |= _linear(f"self_attn.{name}_proj", out, width, bias)
    if config.qk_norm:
        whole = family.qk_norm == "all"
        shapes["self_attn.q_norm.weight"] = (q if whole else config.head_dim,)
        shapes["self_attn.k_norm.weight"] = (kv if whole else config.head_dim,)
    return shapes | _mlp_shapes(config, layer)


def _mlp_shapes(config: ModelConfig, layer: int) -> dict[str, TensorShape]:
    hidden, wide, prefixes = config.hidden_size, config.intermediate_size, ["mlp."]
    shapes: dict[str, TensorShape] = {}
    experts = config.experts
    if experts is not None and layer in experts.layers:
        wide = experts.width
        prefixes = [f"mlp.experts.{i}." for i in range(experts.count)]
        shapes["mlp.gate.weight"] = (experts.count, hidden)
    for prefix in prefixes:
        if config.family.fused:
            shapes |= _linear(f"{prefix}gate_up_proj", 2 * wide, hidden, config.mlp_bias)
        else:
            shapes |= _linear(f"{prefix}gate_proj", wide, hidden, config.mlp_bias)
            shapes |= _linear(f"{prefix}up_proj", wide, hidden, config.mlp_bias)
        shapes |= _linear(f"{prefix}down_proj", hidden, wide, config.mlp_bias)
    return shapes


def _linear(name: str, out: int, width: int, bias: bool) -> dict[str, TensorShape]:
    weight: dict[str, TensorShape] = {f"{name}.weight": (out, width)}
    return weight | ({f"{name}.bias": (out,)} if bias else {})


def assemble(config: ModelConfig, take: Take) -> Weights:
    """Build the decoder's weights from a checkpoint's tensors, layer by layer."""
    embed = take(EMBED)
    parts = Assembler(config, take)
    layers = tuple(parts.layer(index) for index in range(config.num_layers))
    lm_head = embed if config.tie_embeddings else take(HEAD)
    return Weights(embed, layers, parts.norm("model.norm"), lm_head)


@dataclass(frozen=True, slots=True)
class Assembler:
    """Builds a layer's weights from a checkpoint's tensors."""

    config: ModelConfig
    take: Take

    def layer(self, index: int) -> LayerWeights:
        config, prefix = self.config, f"model.layers.{index}."
        norms, experts = config.family.norms, config.experts
        attention = f"{prefix}self_attn."
        qkv = ("qkv",) if config.family.fused else ("q", "k", "v")
        mlp: Callable[[str], MlpWeights | ExpertWeights] = self.mlp
        if experts is not None and index in experts.layers:
            mlp = self.experts
        return LayerWeights(
            norms=LayerNorms(*(name and self.norm(prefix + name) for name in astuple(norms))),
            qkv=self.linear(attention, qkv, config.qkv_bias),
            q_norm=self.norm(f"{attention}q_norm") if config.qk_norm else None,
            k_norm=self.norm(f"{attention}k_norm") if config.qk_norm else None,
            o=self.linear(attention, ("o",), config.o_bias),
            mlp=mlp(f"{prefix}mlp."),
        )

    def mlp(self, prefix: str) -> MlpWeights:
        gate_up = ("gate_up",) if self.config.family.fused else ("gate", "up")
        bias = self.config.mlp_bias
        return MlpWeights(self.linear(prefix, gate_up, bias), self.linear(prefix, ("down",), bias))

    def experts(self, prefix: str) -> ExpertWeights:
        assert self.config.experts is not None
        every = range(self.config.experts.count)
        experts = tuple(self.mlp(f"{prefix}experts.{index}.") for index in every)
        return ExpertWeights(self.take(f"{prefix}gate.weight"), experts)

    def linear(self, prefix: str, names: tuple[str, ...], bias: bool) -> Linear:
        """Several projections of one input, merged into one."""
        weight = self.join(prefix, names, "weight")
        return Linear(weight, self.join(prefix, names, "bias") if bias else None)

    def join(self, prefix: str, names: tuple[str, ...], kind: str) -> Tensor:
        parts = [self.take(f"{prefix}{name}_proj.{kind}") for name in names]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def norm(self, name: str) -> Tensor:
        """A norm's weight. Gemma stores it minus 1; the sum needs more bits than half precision
        has, so it is fp32."""
        weight = self.take(f"{name}.weight")
        return 1 + weight.float() if self.config.family.shifted_norms else weight
