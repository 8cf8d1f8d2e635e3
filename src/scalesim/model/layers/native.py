"""The native decoder: one class for all families, selected by the config's options.

The decoder holds weights and rotary tables, but no KV and no batch. Every op comes from the kernel
set that is passed in.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeAlias

import torch
from scalesim_kernels import KernelSet, LoraSite
from torch import Tensor

from scalesim.model.adapters.layout import lora_sites
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.checkpoint.weights import (
    ExpertWeights,
    LayerWeights,
    Linear,
    MlpWeights,
    Weights,
)
from scalesim.model.layers.decoder import ForwardContext
from scalesim.model.layers.experts import mix_experts
from scalesim.model.layers.rope import cos_sin_table

LoraLinear: TypeAlias = Callable[[Tensor, Linear, LoraSite], Tensor]


class NativeModel:
    """A decoder over paged KV, for positions below the last argument of ``reserve``."""

    row_multiple = 1

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config = config
        self.weights = weights
        self.dtype = weights.embed.dtype
        self.place = str(weights.embed.device)
        self._qkv, self._o, self._gate_up, self._down = lora_sites(config)
        self.reserve(0)

    @property
    def takes_graphs(self) -> bool:
        """Whether steps may be captured as CUDA graphs: the host reads none of their values."""
        return self.config.experts is None

    def packed(self, kernels: KernelSet) -> NativeModel:
        """The same model with its matrices in the form that ``kernels`` prefer."""
        return NativeModel(self.config, self.weights.packed(kernels.pack_weight))

    def with_weights(self, weights: Weights) -> NativeModel:
        """The same model with its weights elsewhere."""
        other = copy.copy(self)
        other.weights = weights
        return other

    def reserve(self, num_positions: int) -> None:
        """Make the rotary tables, where the weights lie. A model's full context may need 100 MB, a
        run much less."""
        config = self.config
        tables = {
            rope: torch.from_numpy(cos_sin_table(rope, config.head_dim, num_positions)).to(
                device=self.weights.embed.device, dtype=self.dtype
            )
            for rope in {config.rope, config.local_rope or config.rope}
        }
        self._cos_sin = [tables[config.rope_of(layer)] for layer in range(config.num_layers)]

    def forward(self, token_ids: Tensor, context: ForwardContext) -> Tensor:
        kernels, lora = context.kernels, context.lora
        pool = context.pool if lora is None else context.adapter_pool(self.dtype)

        def linear(x: Tensor, layer: Linear, site: LoraSite) -> Tensor:
            out = kernels.linear(x, layer.weight, layer.bias)
            if lora is not None:
                h = kernels.lora_shrink(x, pool, index, site, lora)
                kernels.lora_expand(h, pool, index, site, lora, out)
            return out

        def enter(x: Tensor, norm: Tensor | None, residual: Tensor | None) -> tuple[Tensor, Tensor]:
            """The input of attention or MLP, and the residual to which its output is added."""
            if norm is not None:
                return kernels.rms_norm(x, norm, self.config.rms_eps, residual)
            total = x if residual is None else x + residual
            return total, total

        def leave(x: Tensor, norm: Tensor | None) -> Tensor:
            return x if norm is None else kernels.rms_norm(x, norm, self.config.rms_eps)[0]

        x, residual = self._embed(token_ids), None
        for index, layer in enumerate(self.weights.layers):
            norms = layer.norms
            x, residual = enter(x, norms.before_attention, residual)
            qkv = linear(x, layer.qkv, self._qkv)
            mixed = self._attend(qkv, layer, index, context)
            x = leave(linear(mixed, layer.o, self._o), norms.after_attention)
            x, residual = enter(x, norms.before_mlp, residual)
            x = leave(self._mlp(x, layer.mlp, kernels, linear), norms.after_mlp)
        return enter(x, self.weights.final_norm, residual)[0]

    def logits(self, hidden: Tensor, kernels: KernelSet, out: Tensor | None = None) -> Tensor:
        """The logits ``[rows, vocab]``, fp32, of final hidden states ``[rows, hidden]``; in ``out``
        if given."""
        logits = kernels.linear(hidden, self.weights.lm_head)
        if (cap := self.config.logit_soft_cap) is not None:
            logits = capped(logits, cap)
        return logits.float() if out is None else out.copy_(logits)

    def _embed(self, token_ids: Tensor) -> Tensor:
        x = self.weights.embed.index_select(0, token_ids)
        if not self.config.family.scaled_embedding:
            return x
        # rounded first, as in the models' training
        return x * torch.tensor(self.config.hidden_size**0.5, dtype=x.dtype).item()

    def _mlp(
        self, x: Tensor, mlp: MlpWeights | ExpertWeights, kernels: KernelSet, linear: LoraLinear
    ) -> Tensor:
        if isinstance(mlp, ExpertWeights):
            assert self.config.experts is not None
            return mix_experts(x, mlp, self.config.experts, kernels)
        silu = self.config.family.activation == "silu"
        gated = kernels.silu_mul if silu else kernels.gelu_mul
        wide = gated(linear(x, mlp.gate_up, self._gate_up))
        return linear(wide, mlp.down, self._down)

    def _attend(
        self, qkv: Tensor, layer: LayerWeights, index: int, context: ForwardContext
    ) -> Tensor:
        config = self.config
        norms: tuple[Tensor | None, Tensor | None] = (layer.q_norm, layer.k_norm)
        if config.family.qk_norm == "all":
            self._norm_heads(qkv, layer, context.kernels)
            norms = (None, None)
        rotation, options = self._cos_sin[index], config.attention_options(index)
        mixed = context.attend(
            qkv, index, rotation, config.attention_scale, options, norms, config.rms_eps
        )
        return mixed.flatten(1)

    def _norm_heads(self, qkv: Tensor, layer: LayerWeights, kernels: KernelSet) -> None:
        """Normalize all heads of Q together, and all of K, in place (OLMo 2)."""
        assert layer.q_norm is not None and layer.k_norm is not None
        q_width, k_width = len(layer.q_norm), len(layer.k_norm)
        q, k = qkv[:, :q_width], qkv[:, q_width : q_width + k_width]
        for part, weight in ((q, layer.q_norm), (k, layer.k_norm)):
            part.copy_(kernels.rms_norm(part.contiguous(), weight, self.config.rms_eps)[0])


def capped(logits: Tensor, cap: float) -> Tensor:
    """``cap * tanh(logits / cap)``. On a CPU, row by row: torch computes the end of each thread's
    range with another function, whose last bit differs, so a row's bits would depend on the
    batch."""
    scaled = logits / cap
    for row in scaled if scaled.is_cpu else (scaled,):
        row.tanh_()
    return scaled.mul_(cap)
