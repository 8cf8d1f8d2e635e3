"""The decoder interface that runners use, for native and hosted models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from scalesim_kernels import KernelSet, LoraBatch, PagedBatch
from torch import Tensor

from scalesim.model.checkpoint.config import ModelShape


@dataclass(slots=True)
class ForwardContext:
    """The inputs of a step's layers besides hidden states; terms as in the kernels' contracts. All
    layers write their attention to one tensor."""

    pool: Tensor  # KV is written there, in the model's dtype or in e4m3
    batch: PagedBatch
    plan: Any  # what ``kernels.plan`` made of the batch
    kernels: KernelSet
    lora: LoraBatch | None = None  # None if no token uses an adapter
    _mixed: Tensor | None = field(default=None, init=False)

    @classmethod
    def planned(
        cls, model: Decoder, kernels: KernelSet, pool: Tensor, batch: PagedBatch,
        reproducible: bool, lora: LoraBatch | None = None,
    ) -> ForwardContext:  # fmt: skip
        """The context of a step of ``model``, with its plan."""
        num_heads, options = model.config.num_heads, {}
        if pool.dtype != model.dtype:
            options["dtype"] = model.dtype
        plan = kernels.plan(batch, pool, num_heads, reproducible, **options)
        return cls(pool, batch, plan, kernels, lora)

    def adapter_pool(self, dtype: torch.dtype) -> Tensor:
        """The pool's memory in the dtype of the adapters that lie there, which KV may not have."""
        return self.pool if self.pool.dtype == dtype else self.pool.view(dtype)

    def attend(
        self, heads: Tensor, layer: int, rotation: Tensor, scale: float, options: Mapping[str, Any],
        norms: tuple[Tensor | None, Tensor | None] = (None, None), eps: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """Store K and V of ``heads`` (``[num_tokens, ...]``: Q, K and V side by side), and return
        the attention of Q, ``[num_tokens, num_heads, head_dim]``, valid until the next layer's.
        options : window and soft cap, if the layer has them."""
        kernels, step = self.kernels, (self.pool, layer, self.batch, self.plan)
        q = kernels.qk_norm_rope_store(heads, *step, rotation, *norms, eps)
        out = self._mixed
        if out is None or out.shape != q.shape:
            # Zeros, not garbage: padding rows feed the next layers, and no layer writes them.
            out = self._mixed = q.new_zeros(q.shape)
        kernels.paged_decode(q, *step, scale, out, **options)
        kernels.paged_prefill(q, *step, scale, out, **options)
        return out


class Decoder(Protocol):
    """A model as runners use it. ``takes_graphs`` tells whether steps may be captured as CUDA
    graphs; ``place`` is where the weights lie. A row's bits do not depend on the other rows where
    the number of rows is a multiple of ``row_multiple``, and of that of the kernels."""

    dtype: torch.dtype
    place: str

    @property
    def config(self) -> ModelShape: ...

    @property
    def takes_graphs(self) -> bool: ...

    @property
    def row_multiple(self) -> int: ...

    def packed(self, kernels: KernelSet) -> Decoder:
        """The same model, for one engine, with its matrices in the form that ``kernels`` prefer."""

    def reserve(self, num_positions: int) -> None:
        """Prepare for positions below ``num_positions``. Call before the first ``forward``."""

    def forward(self, token_ids: Tensor, context: ForwardContext) -> Tensor:
        """Final normalized hidden states ``[num_tokens, hidden]`` of ``token_ids`` ``[num_tokens]``
        int32, padding included; writes KV to the pool."""

    def logits(self, hidden: Tensor, kernels: KernelSet, out: Tensor | None = None) -> Tensor:
        """The logits ``[rows, vocab]``, fp32, of final hidden states ``[rows, hidden]``; in ``out``
        if given."""


def row_multiple(model: Decoder, kernels: KernelSet) -> int:
    """The rows of a reproducible step are a multiple of this many."""
    return math.lcm(model.row_multiple, kernels.row_multiple)
