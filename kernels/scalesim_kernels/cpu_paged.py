"""The ops of the CPU set that numba compiles, as the contracts have them: jobs are made of tensors
here, and run by ``cpu_team``.

What the compiled kernels do not take (other dtypes than fp32, widths that are no multiple of their
vectors) goes to torch's operations: ``cpu_attention``, ``cpu_elementwise``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import cpu_compiled as compiled
from . import cpu_compiled_attention as compiled_attention
from . import cpu_elementwise as plain
from .contracts import PagedBatch
from .cpu_attention import CpuAttention, CpuPlan, split_sequences
from .cpu_lanes import WIDTH
from .cpu_team import run
from .cpu_tiles import Sequences
from .float8 import FLOAT8

TOKENS = 16  # of a prefill's item: they share the KV that they read
SMALL = 1 << 14  # elements: less work than this is done before a team is awake
HEAD_MULTIPLE = 2 * WIDTH  # both halves of a rotated head are whole vectors


@dataclass(frozen=True, slots=True)
class PagedPlan:
    """The items of a step, ``[n, 4]`` int32 each: block table row, first token, number of tokens,
    first position."""

    decode: npt.NDArray[np.int32]
    prefill: npt.NDArray[np.int32]


class InPlaceAttention:
    """``plan``, ``rope``, ``paged_decode`` and ``paged_prefill`` on pages in place; by
    ``CpuAttention`` where heads or dtype are others than the compiled kernels take."""

    def __init__(self) -> None:
        self._gathering = CpuAttention()
        self._gathering_rope = plain.CpuRope(self._gathering)

    def plan(
        self, batch: PagedBatch, pool: Tensor, num_heads: int, reproducible: bool,
        dtype: torch.dtype | None = None,
    ) -> PagedPlan | CpuPlan:  # fmt: skip
        """See ``contracts.PlanAttention``. The compiled kernels are always reproducible."""
        if (dtype or pool.dtype) != torch.float32 or pool.shape[5] % HEAD_MULTIPLE:
            return self._gathering.plan(batch, pool, num_heads, reproducible, dtype)
        decodes, prefills = split_sequences(batch)
        return PagedPlan(items(decodes, 1), items(prefills, TOKENS))

    def rope(
        self, qkv: Tensor, pool: Tensor, layer: int, batch: PagedBatch, plan: PagedPlan | CpuPlan,
        cos_sin: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, eps: float,
    ) -> Tensor:  # fmt: skip
        """See ``contracts.QkNormRopeStore``."""
        if isinstance(plan, CpuPlan):
            return self._gathering_rope(
                qkv, pool, layer, batch, plan, cos_sin, q_weight, k_weight, eps
            )
        _, _, _, num_kv_heads, block_size, head_dim = pool.shape
        num_tokens, width = qkv.shape
        num_heads = width // head_dim - 2 * num_kv_heads
        weights = [None if w is None else w.to(torch.float32) for w in (q_weight, k_weight)]
        table = batch.block_table
        job = compiled.RopeJob(
            0, num_tokens, qkv.data_ptr(), qkv.numel(), *layer_of(pool, layer),
            table.data_ptr(), table.numel(), table.shape[1],
            batch.token_rows.data_ptr(), batch.positions.data_ptr(),
            cos_sin.data_ptr(), cos_sin.numel(), num_tokens, num_heads, num_kv_heads, head_dim,
            block_size, int(pool.dtype == FLOAT8),
            *(0 if w is None else w.data_ptr() for w in weights), eps,
        )  # fmt: skip
        run(compiled.rope_and_store, job, qkv.numel() >= SMALL)
        return qkv.view(num_tokens, -1, head_dim)[:, :num_heads]

    def paged_decode(
        self, q: Tensor, pool: Tensor, layer: int, batch: PagedBatch, plan: PagedPlan | CpuPlan,
        scale: float, out: Tensor, window: int | None = None, soft_cap: float | None = None,
    ) -> None:  # fmt: skip
        """See ``contracts.PagedAttention``."""
        if isinstance(plan, CpuPlan):
            self._gathering.paged_decode(q, pool, layer, batch, plan, scale, out, window, soft_cap)
        elif len(plan.decode):
            attend(q, pool, layer, batch, plan.decode, 1, scale, out, window, soft_cap)

    def paged_prefill(
        self, q: Tensor, pool: Tensor, layer: int, batch: PagedBatch, plan: PagedPlan | CpuPlan,
        scale: float, out: Tensor, window: int | None = None, soft_cap: float | None = None,
    ) -> None:  # fmt: skip
        """See ``contracts.PagedAttention``."""
        if isinstance(plan, CpuPlan):
            self._gathering.paged_prefill(q, pool, layer, batch, plan, scale, out, window, soft_cap)
        elif len(plan.prefill):
            attend(q, pool, layer, batch, plan.prefill, TOKENS, scale, out, window, soft_cap)


def items(seqs: Sequences, num_tokens: int) -> npt.NDArray[np.int32]:
    """Each sequence's tokens in parts of up to ``num_tokens``; the longest contexts first, so that
    threads end together."""
    counts = -(-seqs.num_tokens // num_tokens)
    seq = np.repeat(np.arange(len(counts)), counts)
    ends = np.cumsum(counts)
    begin = (np.arange(len(seq)) - np.repeat(ends - counts, counts)) * num_tokens
    found = np.stack(
        (
            seqs.rows[seq],
            seqs.first_token[seq] + begin,
            np.minimum(seqs.num_tokens[seq] - begin, num_tokens),
            seqs.first_position[seq] + begin,
        ),
        axis=1,
    )
    order = np.argsort(-found[:, 3], kind="stable")
    return np.ascontiguousarray(found[order], np.int32)


def layer_of(pool: Tensor, layer: int) -> tuple[int, int, int]:
    """Where a layer of the pool begins, how many elements lie from there on, and how many from one
    page to the next."""
    skipped = layer * pool.stride(1)
    return pool.data_ptr() + skipped * pool.itemsize, extent(pool) - skipped, pool.stride(0)


def extent(pool: Tensor) -> int:
    """The elements from the first of the pool to its last; the ends of pages may be unused."""
    return (len(pool) - 1) * pool.stride(0) + pool[0].numel()


def attend(
    q: Tensor, pool: Tensor, layer: int, batch: PagedBatch, found: npt.NDArray[np.int32],
    num_tokens: int, scale: float, out: Tensor, window: int | None, soft_cap: float | None,
) -> None:  # fmt: skip
    """Attention of the items ``found``, of up to ``num_tokens`` tokens each."""
    _, _, _, num_kv_heads, block_size, head_dim = pool.shape
    if q.stride(1) != head_dim or q.stride(2) != 1:
        q = q.contiguous()
    table = batch.block_table
    job = compiled_attention.AttentionJob(
        0, len(found) * num_kv_heads,
        q.data_ptr(), q.stride(0), (len(q) - 1) * q.stride(0) + q.shape[1] * head_dim,
        out.data_ptr(), out.numel(), *layer_of(pool, layer),
        table.data_ptr(), table.numel(), table.shape[1], found.ctypes.data,
        q.shape[1], num_kv_heads, head_dim, block_size, window or 0, num_tokens,
        int(pool.dtype == FLOAT8), scale, soft_cap or 0.0,
    )  # fmt: skip
    run(compiled_attention.attention, job)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See ``contracts.RmsNorm``."""
    rows, width = x.shape
    if {x.dtype, weight.dtype} != {torch.float32} or width % WIDTH:
        return plain.rms_norm(x, weight, eps, residual)
    out, rows_each = torch.empty_like(x), rows_of(width)
    job = compiled.NormJob(
        0, 0, x.data_ptr(), 0 if residual is None else residual.data_ptr(),
        weight.data_ptr(), out.data_ptr(), rows, width, rows_each, eps,
    )  # fmt: skip
    run(compiled.rms_norm, job, rows > rows_each)
    return out, x if residual is None else residual


def silu_mul(gate_up: Tensor) -> Tensor:
    """See ``contracts.SiluMul``."""
    return gated(gate_up, gelu=False)


def gelu_mul(gate_up: Tensor) -> Tensor:
    """See ``contracts.GeluMul``."""
    return gated(gate_up, gelu=True)


def gated(gate_up: Tensor, gelu: bool) -> Tensor:
    rows, width = len(gate_up), gate_up.shape[1] // 2
    if gate_up.dtype != torch.float32 or width % WIDTH:
        return (plain.gelu_mul if gelu else plain.silu_mul)(gate_up)
    out, rows_each = gate_up.new_empty((rows, width)), rows_of(width)
    job = compiled.GateJob(
        0, 0, gate_up.data_ptr(), out.data_ptr(), rows, width, rows_each, int(gelu)
    )
    run(compiled.gate, job, rows > rows_each)
    return out


def rows_of(width: int) -> int:
    """Rows of an item, so that an item is worth its share of waking a team."""
    return max(1, SMALL // 2 // width)
