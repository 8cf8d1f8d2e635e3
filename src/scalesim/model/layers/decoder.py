"""What a runner needs of a model: of the native decoder, or of one that transformers runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from scalesim_kernels import KernelSet, LoraBatch, PagedBatch
from torch import Tensor

from scalesim.model.checkpoint.config import ModelShape


@dataclass(frozen=True, slots=True)
class ForwardContext:
    """What the layers of one step work with besides hidden states, as in the kernels' contracts."""

    pool: Tensor  # KV is written there
    batch: PagedBatch
    plan: Any  # what ``kernels.plan`` made of the batch
    kernels: KernelSet
    lora: LoraBatch | None = None  # where a token uses an adapter

    def attend(
        self, heads: Tensor, layer: int, rotation: Tensor, scale: float, options: Mapping[str, Any],
        norms: tuple[Tensor | None, Tensor | None] = (None, None), eps: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """``[num_tokens, num_heads, head_dim]`` of ``heads`` (``[num_tokens, ...]``: Q, K and V),
        whose K and V are stored. options : what plain attention does without."""
        kernels, step = self.kernels, (self.pool, layer, self.batch, self.plan)
        q = kernels.qk_norm_rope_store(heads, *step, rotation, *norms, eps)
        # Zeros, not garbage: rows of padding feed the next layers, where NaN would only cost speed.
        out = q.new_zeros(q.shape)
        kernels.paged_decode(q, *step, scale, out, **options)
        kernels.paged_prefill(q, *step, scale, out, **options)
        return out


class Decoder(Protocol):
    """``takes_graphs``: its steps may be captured; ``place``: where its weights lie."""

    dtype: torch.dtype
    place: str

    @property
    def config(self) -> ModelShape: ...

    @property
    def takes_graphs(self) -> bool: ...

    def packed(self, kernels: KernelSet) -> Decoder:
        """The same model, for one engine, in the form that these kernels are fastest with."""

    def reserve(self, num_positions: int) -> None:
        """Prepare for positions below this one. Before the first ``forward``."""

    def forward(self, token_ids: Tensor, context: ForwardContext) -> Tensor:
        """Final normalized hidden states ``[num_tokens, hidden]`` of ``token_ids`` ``[num_tokens]``
        int32, padding included; writes KV to the pool."""

    def logits(self, hidden: Tensor, kernels: KernelSet, out: Tensor | None = None) -> Tensor:
        """``[rows, vocab]`` fp32 of final hidden states ``[rows, hidden]``; in ``out`` if given."""
