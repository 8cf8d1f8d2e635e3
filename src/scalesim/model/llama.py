"""The decoder of Llama, Qwen2 and Qwen3: one class, told apart by its config's flags.

Holds weights and the rotary table, no KV and no batch; ``ModelRunner`` calls it. Every op comes
from the kernel set that is passed in.
"""

from __future__ import annotations

from typing import Any

import torch
from scalesim_kernels import KernelSet, LoraBatch, LoraSite, PagedBatch
from torch import Tensor

from scalesim.model.adapters.layout import lora_sites
from scalesim.model.config import ModelConfig
from scalesim.model.rope import cos_sin_table
from scalesim.model.weights import LayerWeights, Weights


class Llama:
    """A decoder over paged KV, for positions below what ``reserve`` was last called with."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config = config
        self.weights = weights
        self.dtype = weights.embed.dtype
        self._scale = config.head_dim**-0.5
        self._qkv, self._o, self._gate_up, self._down = lora_sites(config)
        self.reserve(0)

    def packed(self, kernels: KernelSet) -> Llama:
        """The same model with its matrices in the form that these kernels are fastest with."""
        return Llama(self.config, self.weights.packed(kernels.pack_weight))

    def reserve(self, num_positions: int) -> None:
        """Make the rotary table (a model's full context may need 100 MB, a run much less)
        beside the weights."""
        table = cos_sin_table(self.config.rope, self.config.head_dim, num_positions)
        place = self.weights.embed.device
        self._cos_sin = torch.from_numpy(table).to(device=place, dtype=self.dtype)

    def forward(
        self,
        token_ids: Tensor,
        pool: Tensor,
        batch: PagedBatch,
        plan: Any,
        kernels: KernelSet,
        lora: LoraBatch | None = None,
    ) -> Tensor:
        """Final normalized hidden states, ``[num_tokens, hidden]``; writes KV to ``pool``.

        token_ids : ``[num_tokens]`` int32, padding included. pool : as in the kernels' contracts.
        lora : ``None`` where no token uses an adapter.
        """

        def linear(x: Tensor, weight: Tensor, bias: Tensor | None, site: LoraSite) -> Tensor:
            out = kernels.linear(x, weight, bias)
            if lora is not None:
                h = kernels.lora_shrink(x, pool, index, site, lora)
                kernels.lora_expand(h, pool, index, site, lora, out)
            return out

        eps, residual = self.config.rms_eps, None
        x = self.weights.embed.index_select(0, token_ids)
        for index, layer in enumerate(self.weights.layers):
            x, residual = kernels.rms_norm(x, layer.input_norm, eps, residual)
            qkv = linear(x, layer.qkv, layer.qkv_bias, self._qkv)
            mixed = self._attend(qkv, layer, index, pool, batch, plan, kernels)
            x = linear(mixed, layer.o, layer.o_bias, self._o)
            x, residual = kernels.rms_norm(x, layer.post_norm, eps, residual)
            x = kernels.silu_mul(linear(x, layer.gate_up, layer.gate_up_bias, self._gate_up))
            x = linear(x, layer.down, layer.down_bias, self._down)
        return kernels.rms_norm(x, self.weights.final_norm, eps, residual)[0]

    def logits(self, hidden: Tensor, kernels: KernelSet, out: Tensor | None = None) -> Tensor:
        """``[rows, vocab]`` fp32 of final hidden states ``[rows, hidden]``; in ``out`` if given."""
        logits = kernels.linear(hidden, self.weights.lm_head)
        return logits.float() if out is None else out.copy_(logits)

    def _attend(
        self,
        qkv: Tensor,
        layer: LayerWeights,
        index: int,
        pool: Tensor,
        batch: PagedBatch,
        plan: Any,
        kernels: KernelSet,
    ) -> Tensor:
        q = kernels.qk_norm_rope_store(
            qkv, pool, index, batch, plan, self._cos_sin,
            layer.q_norm, layer.k_norm, self.config.rms_eps,
        )  # fmt: skip
        # Zeros, not garbage: rows of padding feed the next layers, where NaN would only cost speed.
        mixed = q.new_zeros(q.shape)
        kernels.paged_decode(q, pool, index, batch, plan, self._scale, mixed)
        kernels.paged_prefill(q, pool, index, batch, plan, self._scale, mixed)
        return mixed.flatten(1)
