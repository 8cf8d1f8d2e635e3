"""What a runner needs of a model: of the native decoder, or of one that transformers runs."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from scalesim_kernels import KernelSet, LoraBatch, PagedBatch
from torch import Tensor

from scalesim.model.checkpoint.config import ModelShape


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
