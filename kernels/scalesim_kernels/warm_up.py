"""Warm-up: one call of every op as a model would make it, to compile all kernels before serving.

The GPU runner uses ``warm_up`` at its start. The compile gate makes the same calls, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .contracts import Adjustments, KernelSet, LoraBatch, LoraDirectory, LoraSite, PagedBatch
from .float8 import FLOAT8
from .lora_tiles import lora_tiles

MAX_RANK = 64  # of the adapters that the example has
MANY_ROWS = 100  # a linear layer may be compiled in a second form for so many
MANY_TOKENS = 1100  # and so may a prefill


@dataclass(frozen=True, slots=True)
class WarmUpShape:
    """The properties on which the compiled form of kernels depends. ``linears`` are (in, out, has a
    bias) of each kind."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    hidden: int
    intermediate: int
    vocab: int
    dtype: torch.dtype
    qk_norm: bool = False
    window: int | None = None
    soft_cap: float | None = None
    gelu: bool = False
    linears: tuple[tuple[int, int, bool], ...] = ()
    fp8: bool = False  # KV in e4m3


def warm_up(
    kernels: KernelSet, shape: WarmUpShape, *, device: str = "cuda", reproducible: bool = True
) -> None:
    """Run every op of ``kernels`` once on small tensors of its own; what compiles, compiles now."""
    for _, call in calls(kernels, shape, device, reproducible):
        call()


def calls(
    kernels: KernelSet, shape: WarmUpShape, device: str, reproducible: bool
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(op, a call of it) in an order in which each call finds its inputs made."""
    dtype, tokens = shape.dtype, 20

    def zeros(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=device)

    # two layers: page strides are multiples of 16, as they are with any number
    size = (2, 2, 2, shape.num_kv_heads, shape.block_size, shape.head_dim)
    pool = zeros(*size, dtype=FLOAT8 if shape.fp8 else dtype)
    given = {"dtype": dtype} if shape.fp8 else {}
    batch = example_batch(device, tokens)
    plan = kernels.plan(batch, pool, shape.num_heads, reproducible, **given)
    yield "plan", lambda: kernels.plan(batch, pool, shape.num_heads, reproducible, **given)
    x, weight = zeros(tokens, shape.hidden), zeros(shape.hidden)
    yield "rms_norm", lambda: kernels.rms_norm(x, weight, 1e-6)
    yield "rms_norm", lambda: kernels.rms_norm(x, weight, 1e-6, zeros(tokens, shape.hidden))
    for width, out_width, has_bias in shape.linears:
        matrix, bias = zeros(out_width, width), zeros(out_width) if has_bias else None
        for rows in (tokens, MANY_ROWS):
            yield "linear", partial(kernels.linear, zeros(rows, width), matrix, bias)
    width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    norm = zeros(shape.head_dim) if shape.qk_norm else None
    qkv, cos_sin = zeros(tokens, width), zeros(64, shape.head_dim)
    yield (
        "qk_norm_rope_store",
        lambda: kernels.qk_norm_rope_store(qkv, pool, 0, batch, plan, cos_sin, norm, norm, 1e-6),
    )
    q = qkv.view(tokens, -1, shape.head_dim)[:, : shape.num_heads]
    out = zeros(tokens, shape.num_heads, shape.head_dim)
    wanted = {"window": shape.window, "soft_cap": shape.soft_cap}
    options: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    args = (q, pool, 0, batch, plan, 1.0, out)
    yield "paged_decode", partial(kernels.paged_decode, *args, **options)
    yield "paged_prefill", partial(kernels.paged_prefill, *args, **options)
    many = example_batch(device, MANY_TOKENS)
    many_q = zeros(MANY_TOKENS, shape.num_heads, shape.head_dim)
    many_plan = kernels.plan(many, pool, shape.num_heads, reproducible, **given)
    yield (
        "paged_prefill",
        lambda: kernels.paged_prefill(
            many_q, pool, 0, many, many_plan, 1.0, torch.zeros_like(many_q), **options
        ),
    )
    lora, adapters = example_lora(device, tokens), pool.view(dtype)
    for site in lora_sites(shape):
        x_, wide = zeros(tokens, site.in_width), zeros(tokens, sum(site.out_widths))
        shrink = partial(kernels.lora_shrink, x_, adapters, 0, site, lora)

        def expand(
            out: Tensor = wide, site: LoraSite = site, shrink: Callable[[], Tensor] = shrink
        ) -> None:  # what a set's shrink returns, only the set knows
            kernels.lora_expand(shrink(), adapters, 0, site, lora, out)

        yield "lora_shrink", shrink
        yield "lora_expand", expand
    gate_up = zeros(tokens, 2 * shape.intermediate)
    gated = "gelu_mul" if shape.gelu else "silu_mul"
    yield gated, lambda: getattr(kernels, gated)(gate_up)
    src, dst = (torch.tensor([page], device=device) for page in (0, 1))
    yield "copy_pages", lambda: kernels.copy_pages(pool, src, dst)
    yield "zero_pages", lambda: kernels.zero_pages(pool, dst)
    logits, ones = zeros(2, shape.vocab, dtype=torch.float32), torch.ones(2, device=device)
    ints = torch.zeros(2, dtype=torch.int32, device=device)
    yield "sample", lambda: kernels.sample(logits, ones, ints, ones, ints.long(), ints)
    changes = example_changes(device, shape.vocab)
    yield "adjust_logits", lambda: kernels.adjust_logits(logits, changes)
    yield "log_probs", lambda: kernels.log_probs(logits, ints, 2)


def lora_sites(shape: WarmUpShape) -> tuple[LoraSite, LoraSite, LoraSite, LoraSite]:
    """q, k, v; o; gate, up; down."""
    q, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    wide = shape.intermediate
    return (
        LoraSite(0, shape.hidden, (q, kv, kv)), LoraSite(3, q, (shape.hidden,)),
        LoraSite(4, shape.hidden, (wide, wide)), LoraSite(6, wide, (shape.hidden,)),
    )  # fmt: skip


def example_lora(device: str, num_tokens: int) -> LoraBatch:
    """A token on one adapter of rank 16, the others on another; all of whose rows are the first of
    the null page."""

    def int32(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    shape = (1, 2, 7, MAX_RANK)
    offsets = torch.zeros(shape, dtype=torch.int64, device=device)
    ranks = torch.full(shape[:3], 16, dtype=torch.int32, device=device)
    directory = LoraDirectory(offsets, offsets, ranks, torch.ones(shape[:3], device=device))
    table = torch.zeros((3, 64), dtype=torch.int32, device=device)
    return LoraBatch(
        directory, table, int32(*range(num_tokens)), int32(0, 1, num_tokens),
        int32(1, num_tokens - 1), int32(1, 2), int32(0, 0),
        torch.from_numpy(lora_tiles([0, 1], [1, num_tokens - 1], [1, 2], [0, 0])).to(device),
    )  # fmt: skip


def example_changes(device: str, vocab: int) -> Adjustments:
    """Adjustments of one row with every option, each of which changes nothing."""
    ints = torch.zeros(2, dtype=torch.int32, device=device)
    ones, zero = torch.ones(1, device=device), torch.zeros(1, device=device)
    counts = torch.zeros((1, vocab), dtype=torch.int32, device=device)
    masks = torch.full((1, -(-vocab // 32)), -1, dtype=torch.int32, device=device)
    first = ints[:1]
    return Adjustments(
        first, ones, zero, ones, zero, zero, first, counts, ints, first, zero, first, masks
    )


def example_batch(device: str, num_tokens: int) -> PagedBatch:
    """A decode at position 0 and a prefill of the other tokens; both write to the null page."""

    def int32(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    count = num_tokens - 1
    return PagedBatch(
        block_table=torch.zeros((3, 80), dtype=torch.int32, device=device),
        positions=int32(0, *range(count)),
        token_rows=int32(1, *[2] * count),
        seq_rows=int32(1, 2),
        query_start=int32(0, 1, num_tokens),
        context_lens=int32(1, count),
        num_decodes=1,
    )
