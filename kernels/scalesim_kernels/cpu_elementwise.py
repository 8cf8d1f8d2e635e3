"""Elementwise ops of the CPU set by torch's operations: RMSNorm, gated activations, the rotary
embedding. For what the compiled kernels do not take, and where numba is missing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .contracts import PagedBatch
from .cpu_attention import CpuAttention, CpuPlan
from .cpu_rows import SERIAL_ELEMENTS


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    total = x if residual is None else residual.add_(x)
    return normed(total, weight, eps), total


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if weight.dtype == x.dtype:
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    return activate(F.silu, gate_up)


def gelu_mul(gate_up: Tensor) -> Tensor:
    return activate(partial(F.gelu, approximate="tanh"), gate_up)


def activate(function: Callable[[Tensor], Tensor], gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    if torch.get_num_threads() <= 2 and gate.shape[0] % 2 == 0:
        return function(gate).mul_(up)
    # torch computes the end of each thread's range with another exp, whose last bit differs. More
    # threads than rows divide by would end ranges inside rows, at a place that depends on the
    # batch.
    rows = max(1, SERIAL_ELEMENTS // gate.shape[1])
    parts = zip(torch.split(gate, rows), torch.split(up, rows), strict=True)
    return torch.cat([function(g).mul_(u) for g, u in parts])


class CpuRope:
    """``qk_norm_rope_store`` on the attention's store."""

    def __init__(self, attention: CpuAttention) -> None:
        self._attention = attention

    def __call__(
        self,
        qkv: Tensor,
        pool: Tensor,
        layer: int,
        batch: PagedBatch,
        plan: CpuPlan,
        cos_sin: Tensor,
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        eps: float,
    ) -> Tensor:
        num_kv_heads, head_dim = pool.shape[3], pool.shape[5]
        heads = qkv.view(qkv.shape[0], -1, head_dim)
        num_qk = heads.shape[1] - num_kv_heads
        num_heads = num_qk - num_kv_heads
        qk = heads[:, :num_qk]
        if q_weight is not None and k_weight is not None:
            q, k, _ = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=1)
            q.copy_(normed(q, q_weight, eps))
            k.copy_(normed(k, k_weight, eps))
        qk = rotate(qk, cos_sin.index_select(0, batch.positions))
        self._attention.store(qk[:, num_heads:], heads[:, num_qk:], pool, layer, plan)
        return qk[:, :num_heads]


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """``reference.rotate`` with fewer temporaries; products only, so rounded alike everywhere."""
    cos, sin = cos_sin[:, None].chunk(2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    turned = torch.empty(x.shape, dtype=x.dtype)
    low, high = turned.chunk(2, dim=-1)
    torch.mul(first, cos, out=low).sub_(second * sin)
    torch.mul(second, cos, out=high).add_(first * sin)
    return turned
