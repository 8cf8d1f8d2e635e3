"""What a runner needs of a model, whoever wrote its layers: the native decoder, or transformers'.

``ModelShape`` is all that engines and runners read of a hosted model's config; a native model's
``ModelConfig`` has the same names and more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from scalesim_kernels import KernelSet, LoraBatch, PagedBatch
from torch import Tensor

from scalesim.model.checkpoint.config import ModelConfig


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Of a model that transformers runs. ``intermediate_size`` only sizes the workspace."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    eos_token_ids: tuple[int, ...] = ()


class Decoder(Protocol):
    """``takes_graphs``: its steps may be captured; ``place``: where its weights lie."""

    dtype: torch.dtype
    place: str

    @property
    def config(self) -> ModelConfig | ModelShape: ...

    @property
    def takes_graphs(self) -> bool: ...

    def packed(self, kernels: KernelSet) -> Decoder:
        """The same model, for one engine, in the form that these kernels are fastest with."""

    def reserve(self, num_positions: int) -> None:
        """Prepare for positions below this one. Before the first ``forward``."""

    def forward(
        self,
        token_ids: Tensor,
        pool: Tensor,
        batch: PagedBatch,
        plan: Any,
        kernels: KernelSet,
        lora: LoraBatch | None = None,
    ) -> Tensor:
        """Final hidden states ``[num_tokens, hidden]`` of ``token_ids`` ``[num_tokens]`` int32;
        writes KV to ``pool``. ``lora``: ``None`` where no token uses an adapter."""

    def logits(self, hidden: Tensor, kernels: KernelSet, out: Tensor | None = None) -> Tensor:
        """``[rows, vocab]`` fp32 of final hidden states ``[rows, hidden]``; in ``out`` if given."""
