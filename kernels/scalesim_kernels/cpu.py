"""The CPU kernel set: faster than the specification, and reproducible row by row.

Properties of the matrix library are tested before they are relied on (``cpu_rows``), for the
shapes, dtypes and numbers of threads that occur. If a property does not hold, the work is cut into
calls for which it does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .contracts import KernelSet, PagedBatch
from .cpu_attention import CpuAttention, CpuPlan
from .cpu_logits import adjust_logits, log_probs
from .cpu_lora import CpuLora
from .cpu_rows import BASE, SERIAL_ELEMENTS, linear, linear_product, steady_linear
from .cpu_sampling import sample

HAS_PACKED_LINEAR = all(
    hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
)
PACKED_FOR_ROWS = 64  # a hint to oneDNN; other row counts ran as fast


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


def pack_weight(weight: Tensor) -> Tensor:
    """oneDNN's blocked form, where torch has the ops that its own compiler uses for it.

    Measured on AVX2, two cores, a 20 M model, fp32: 0.6 of the plain product's time at 32 and 64
    rows, 0.9 at 1024.
    """
    if weight.dtype == torch.float32 and HAS_PACKED_LINEAR:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_ROWS)
        return packed
    return weight


def pack_and_ask(weight: Tensor) -> Tensor:
    """``pack_weight``, and which row counts agree: asked now, not in the first step."""
    packed = pack_weight(weight)
    linear_product(packed).sizes(weight.shape[1], weight.dtype)
    return packed


def copy_pages(pool: Tensor, src: Tensor, dst: Tensor) -> None:
    pool.index_copy_(0, dst, pool.index_select(0, src))


def zero_pages(pool: Tensor, ids: Tensor) -> None:
    pool.index_fill_(0, ids, 0)


def cpu_kernels(reproducible: bool = True) -> KernelSet:
    """``reproducible`` false: ``linear`` is the library's in one call, whatever the rows."""
    attention, lora = CpuAttention(), CpuLora()
    return KernelSet(
        name="cpu",
        row_multiple=BASE,
        rms_norm=rms_norm,
        qk_norm_rope_store=CpuRope(attention),
        plan=attention.plan,
        paged_decode=attention.paged_decode,
        paged_prefill=attention.paged_prefill,
        pack_weight=pack_and_ask if reproducible else pack_weight,
        linear=steady_linear if reproducible else linear,
        lora_shrink=lora.shrink,
        lora_expand=lora.expand,
        silu_mul=silu_mul,
        gelu_mul=gelu_mul,
        copy_pages=copy_pages,
        zero_pages=zero_pages,
        sample=sample,
        log_probs=log_probs,
        adjust_logits=adjust_logits,
    )
