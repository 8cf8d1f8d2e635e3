"""The kernel set for GPUs: every op in Triton. ``select("cuda")`` makes it.

Also runs on CPU tensors in Triton's interpreter (fp32 and fp16; it is wrong in bf16): for tests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import logits, matmul, paged_lora, pages, rows, sampling
from .contracts import KernelSet, PagedBatch
from .kv_store import store
from .launch import Launch, capability, check_pool, interpreted, is_wide, next_power_of_2
from .occupancy import resident_programs
from .paged_decode import MIN_ROWS, SPLIT, DecodePlan, decode, plan_decode
from .paged_prefill import plan_prefill, prefill, tile_tokens
from .work_lists import WorkList

PROGRAMS = 1024  # of a decode until it is known how many run at once
PAIRED_FROM = 1024  # tiles of a reproducible prefill, from which on a program takes two


@dataclass(frozen=True, slots=True)
class TritonPlan:
    """A step's work lists. ``reproducible`` and ``paired`` choose the form of the prefill."""

    decode: DecodePlan | None
    prefill: WorkList | None
    reproducible: bool
    paired: bool


def narrow_launch(head_dim: int, dtype: torch.dtype, fp8: bool = False) -> Launch:
    """Of a decode: tiles that leave room for several programs on a processor. ``fp8``: KV is in
    e4m3, and its conversion takes registers too."""
    if is_wide(dtype) or head_dim > 128:  # with four warps, registers spill here
        return Launch(tile=16, num_warps=8, num_stages=3)
    if fp8 and capability() == 0:  # and here on AMD's GPUs
        return Launch(tile=16, num_warps=4, num_stages=2)
    return Launch(tile=32, num_warps=8 if fp8 and head_dim > 64 else 4, num_stages=3)


def wide_launch(head_dim: int, dtype: torch.dtype, masked: bool, fp8: bool = False) -> Launch:
    """``masked``: every tile is, as under a window. ``fp8``: as in ``narrow_launch``."""
    if is_wide(dtype):  # the decode's tile; with its stages, Triton 3.6 spills here
        return replace(narrow_launch(head_dim, dtype), num_stages=2)
    if head_dim > 128:
        return Launch(tile=32, num_warps=8, num_stages=2)
    if masked or head_dim != next_power_of_2(head_dim) or capability() < 90:
        # masks take registers too, and so do the fragments that wgmma does without
        # On AMD's GPUs, one of the versions of Triton spills with the other number of stages.
        stages = 2 if masked != fp8 and not capability() else 3
        return Launch(tile=32, num_warps=8, num_stages=stages)
    return Launch(tile=64, num_warps=8, num_stages=3)


def wide_rows(head_dim: int, dtype: torch.dtype) -> int:
    if is_wide(dtype):
        return MIN_ROWS
    return 64 if head_dim > 128 else 128


class TritonAttention:
    """``plan``, ``paged_decode`` and ``paged_prefill``: they share the choice of tiles.
    ``programs`` is a decode's number of programs, by default as many as run at once: the first
    launch of a compiled form tells, and the number changes no result. ``paired_from`` changes none
    either."""

    def __init__(self, programs: int | None = None, paired_from: int = PAIRED_FROM) -> None:
        self._given, self._paired_from = programs, paired_from
        self._programs: dict[tuple[Any, ...], int] = {}

    def plan(
        self, batch: PagedBatch, pool: Tensor, num_heads: int, reproducible: bool,
        dtype: torch.dtype | None = None,
    ) -> TritonPlan:  # fmt: skip
        check_pool(pool)
        num_kv_heads, block_size, head_dim = pool.shape[3:]
        dtype = dtype or pool.dtype
        prefill_rows = MIN_ROWS if reproducible else wide_rows(head_dim, dtype)
        tokens = tile_tokens(num_heads, num_kv_heads, prefill_rows)
        paired = False
        if reproducible and not is_wide(dtype) and pool.dtype == dtype:
            # By the number of tokens alone: what the largest step has compiled is enough.
            num_tiles = -(-(len(batch.positions) - batch.num_decodes) // tokens) * num_kv_heads
            in_one_tile = 2 * tokens <= narrow_launch(head_dim, dtype).tile
            paired = in_one_tile and num_tiles >= self._paired_from
        return TritonPlan(
            plan_decode(batch, num_heads, num_kv_heads, head_dim, block_size, SPLIT),
            plan_prefill(batch, tokens * (1 + paired)),
            reproducible,
            paired,
        )

    def paged_decode(
        self, q: Tensor, pool: Tensor, layer: int, batch: PagedBatch, plan: TritonPlan,
        scale: float, out: Tensor, window: int | None = None, soft_cap: float | None = None,
    ) -> None:  # fmt: skip
        if plan.decode is None:
            return
        launch = narrow_launch(pool.shape[5], q.dtype, pool.dtype != q.dtype)
        form = (q.shape[1], *pool.shape[3:], q.dtype, pool.dtype, window, soft_cap)
        programs = self._given or self._programs.get(form)
        kernel = decode(
            q, pool, layer, batch, plan.decode, scale, out, launch, programs or PROGRAMS, window,
            soft_cap,
        )  # fmt: skip
        if programs is None:
            self._programs[form] = resident_programs(kernel, pool.device) or PROGRAMS

    def paged_prefill(
        self, q: Tensor, pool: Tensor, layer: int, batch: PagedBatch, plan: TritonPlan,
        scale: float, out: Tensor, window: int | None = None, soft_cap: float | None = None,
    ) -> None:  # fmt: skip
        if plan.prefill is None:
            return
        head_dim, fp8 = pool.shape[5], pool.dtype != q.dtype
        launch = wide_launch(head_dim, q.dtype, window is not None, fp8)
        num_rows = wide_rows(head_dim, q.dtype)
        if plan.reproducible and not is_wide(q.dtype):
            launch, num_rows = narrow_launch(head_dim, q.dtype, fp8), MIN_ROWS
            if window is not None or capability() < 90:  # with three, Triton 3.7 or 3.9 spills
                launch = replace(launch, num_stages=2)
        split = SPLIT if plan.reproducible else 0
        prefill(
            q, pool, layer, batch, plan.prefill, scale, out, launch, num_rows, split, plan.paired,
            window, soft_cap,
        )  # fmt: skip


def qk_norm_rope_store(
    qkv: Tensor, pool: Tensor, layer: int, batch: PagedBatch, plan: TritonPlan, cos_sin: Tensor,
    q_weight: Tensor | None, k_weight: Tensor | None, eps: float,
) -> Tensor:  # fmt: skip
    return store(qkv, pool, layer, batch, cos_sin, q_weight, k_weight, eps)


def vendor_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


def triton_kernels(reproducible: bool = True) -> KernelSet:
    """``reproducible``: linear layers by ``matmul``, whose rows stand alone; else the vendor's."""
    attention = TritonAttention(4 if interpreted() else None)
    return KernelSet(
        name="triton",
        row_multiple=1,
        rms_norm=rows.rms_norm,
        qk_norm_rope_store=qk_norm_rope_store,
        plan=attention.plan,
        paged_decode=attention.paged_decode,
        paged_prefill=attention.paged_prefill,
        pack_weight=lambda weight: weight,
        linear=matmul.linear if reproducible else vendor_linear,
        lora_shrink=paged_lora.lora_shrink,
        lora_expand=paged_lora.lora_expand,
        silu_mul=rows.silu_mul,
        gelu_mul=rows.gelu_mul,
        copy_pages=pages.copy_pages,
        zero_pages=pages.zero_pages,
        sample=sampling.sample,
        log_probs=logits.log_probs,
        adjust_logits=logits.adjust_logits,
    )
