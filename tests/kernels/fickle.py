"""Matrix libraries that give a row other last bits with other row counts or at other places, as
libraries do on some processors; put under the CPU set in the place of the real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
import torch.nn.functional as F
from scalesim_kernels import cpu_attention, cpu_rows
from torch import Tensor

Fickle: TypeAlias = Callable[[int], Tensor]  # relative changes of so many rows, [rows]

STEP = 2.0**-18


def by_count(rows: int) -> Tensor:
    """Every count of rows has bits of its own."""
    return torch.full((rows,), 1.0 + STEP * (rows % 251))


def beyond_64(rows: int) -> Tensor:
    """More than 64 rows are summed in another order."""
    return torch.full((rows,), 1.0 + STEP * (rows > 64))


def by_place(rows: int) -> Tensor:
    """A row's bits follow from its place among the others."""
    return 1.0 + STEP * (torch.arange(rows) % 5 + rows % 7)


LIBRARIES: dict[str, Fickle] = {each.__name__: each for each in (by_count, beyond_64, by_place)}


def put_under(patch: pytest.MonkeyPatch, fickle: Fickle) -> None:
    """Products and attention by such a library; what the real one answered is forgotten."""

    def changed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(x: Tensor, *args: Any, **options: Any) -> Tensor:
            out = function(x, *args, **options)
            return out * fickle(len(x)).view(-1, *[1] * (out.dim() - 1)).to(out.dtype)

        return call

    def attention(q: Tensor, *args: Any, **options: Any) -> Tensor:
        """Tiles and their rows both count."""
        out = real(q, *args, **options)
        factors = fickle(len(q))[:, None] * fickle(q.shape[2])[None]
        return out * factors[:, None, :, None].to(out.dtype)

    real = F.scaled_dot_product_attention
    patch.setattr(cpu_rows, "answers", {})
    patch.setattr(cpu_rows, "blocks", {})
    patch.setattr(cpu_attention, "ask", cpu_attention.ask.__wrapped__)
    patch.setattr(cpu_rows, "linear", changed(cpu_rows.linear))
    patch.setattr(torch, "mm", changed(torch.mm))
    patch.setattr(F, "scaled_dot_product_attention", attention)
