"""Warms a set up, then calls it with other sizes and alignments; prints what was compiled."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from scalesim_kernels import Adjustments, PagedBatch, select
from scalesim_kernels.compile_only import TARGETS, compiled
from scalesim_kernels.warm_up import WarmUpShape, example_batch, example_lora, lora_sites, warm_up

SHAPE = WarmUpShape(14, 2, 64, 32, 896, 4864, 1000, torch.float16, linears=((896, 1152, True),))
kernels = select("triton")


def unaligned(batch: PagedBatch) -> PagedBatch:
    """The same arrays as slices at odd places."""
    arrays = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name != "num_decodes"}
    for name, array in arrays.items():
        memory = torch.zeros(array.numel() + 1, dtype=array.dtype)
        arrays[name] = memory[1:].view(array.shape).copy_(array)
    return replace(batch, **arrays)


def serve(num_tokens: int) -> None:
    pool = torch.zeros((7, 24, 2, 2, 32, 64), dtype=torch.float16)
    batch = unaligned(example_batch("cpu", num_tokens))
    plan = kernels.plan(batch, pool, 14, True)
    q = torch.zeros(num_tokens, 14, 64, dtype=torch.float16)
    for attend in (kernels.paged_decode, kernels.paged_prefill):
        attend(q, pool, 23, batch, plan, 0.25, torch.zeros_like(q))
    qkv, cos_sin = q.new_zeros(num_tokens, 18 * 64), q.new_zeros(64, 64)
    kernels.qk_norm_rope_store(qkv, pool, 3, batch, plan, cos_sin, None, None, 1e-6)
    x = q.new_zeros(num_tokens, 896)
    kernels.rms_norm(x, x[0], 1e-5, kernels.rms_norm(x, x[0], 1e-5)[0])
    kernels.linear(x, q.new_zeros(1152, 896), q.new_zeros(1152))
    kernels.silu_mul(q.new_zeros(num_tokens, 2 * 4864))
    lora = example_lora("cpu", num_tokens)
    for site in lora_sites(SHAPE):
        h = kernels.lora_shrink(q.new_zeros(num_tokens, site.in_width), pool, 1, site, lora)
        out = q.new_zeros(num_tokens, sum(site.out_widths))
        kernels.lora_expand(h, pool, 1, site, lora, out)
    ids = torch.arange(num_tokens + 1)[1:]
    kernels.copy_pages(pool, ids, ids)
    kernels.zero_pages(pool, ids)
    columns = torch.zeros(5 * num_tokens, dtype=torch.int32)[1:]
    ints, floats = columns[:num_tokens], columns[num_tokens : 2 * num_tokens].float()
    logits = torch.zeros(num_tokens, 1000)
    kernels.sample(logits, floats, ints, floats, ids, ints)
    kernels.log_probs(logits, ints, 5)
    counts, masks = torch.zeros(3, 1000, dtype=torch.int32), torch.zeros(2, 32, dtype=torch.int32)
    kernels.adjust_logits(logits, Adjustments(
        ints, floats, floats, floats, floats, floats, ints, counts,
        torch.zeros(num_tokens + 1, dtype=torch.int32), ints, floats, ints, masks,
    ))  # fmt: skip


with compiled(TARGETS["sm_90"]) as found:
    warm_up(kernels, SHAPE, device="cpu")
    print("warm", len(found))
    found.clear()
    for count in (2, 3, 16, 17, 200):
        serve(count)
    print("served", len(found), *(kernel.name for kernel in found))
