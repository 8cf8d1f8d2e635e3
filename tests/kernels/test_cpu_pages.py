"""Pages of models beside an engine's own: blocks of any multiple of 16 tokens, in pages whose ends
are unused, give the bits of dense pages of 16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scalesim_kernels import KernelSet, PagedBatch
from scalesim_kernels.conformance.paged import PagedCase, PagedShape, garbage, make_case, same_bits
from scalesim_kernels.cpu import cpu_kernels
from scalesim_kernels.cpu_rows import HAS_NUMBA
from scalesim_kernels.float8 import FLOAT8, as_bytes
from torch import Tensor

LENS = ((1, 1), (17, 1), (131, 1), (200, 1), (70, 5), (66, 66), (145, 20))
TAIL = 40  # elements at the end of a page


@pytest.fixture(params=["compiled", "torch"])
def kernels(request: pytest.FixtureRequest) -> KernelSet:
    return cpu_kernels(compiled=request.param == "compiled" and HAS_NUMBA)


def laid_out(case: PagedCase, block_size: int) -> tuple[PagedBatch, Tensor, Tensor]:
    """The same KV in blocks of ``block_size``: the batch, the pool, and all memory of its pages.
    What is no KV is garbage."""
    pool, table = case.pool, case.batch.block_table.clone()
    _, num_layers, _, num_kv_heads, size, head_dim = pool.shape
    shape = (num_layers, 2, num_kv_heads, block_size, head_dim)
    used = torch.Size(shape).numel()
    contexts = case.batch.context_lens.tolist()
    num_pages = 1 + sum(-(-length // block_size) for length in contexts)
    memory = garbage((num_pages, used + TAIL), 3, pool.dtype)
    pages = as_bytes(memory)[:, :used].view(num_pages, *shape)
    page = num_pages
    for row, length in zip(case.batch.seq_rows.tolist(), contexts, strict=True):
        for first in range(0, length, block_size):
            page -= 1
            for position in range(first, min(length, first + block_size)):
                source = int(case.batch.block_table[row, position // size])
                kv = as_bytes(pool)[source, :, :, :, position % size]
                pages[page, :, :, :, position - first] = kv
            table[row, first // block_size] = page
    return replace(case.batch, block_table=table), pages.view(pool.dtype), as_bytes(memory)


def attended(kernels: KernelSet, q: Tensor, batch: PagedBatch, pool: Tensor) -> Tensor:
    plan = kernels.plan(batch, pool, q.shape[1], True, dtype=q.dtype)
    out = torch.zeros_like(q)
    for attend in (kernels.paged_decode, kernels.paged_prefill):
        attend(q, pool, 1, batch, plan, 0.3, out, window=90)
    return out


def stored(kernels: KernelSet, qkv: Tensor, batch: PagedBatch, pool: Tensor, heads: int) -> None:
    plan = kernels.plan(batch, pool, heads, True, dtype=qkv.dtype)
    cos_sin = torch.ones(256, pool.shape[5], dtype=qkv.dtype)
    kernels.qk_norm_rope_store(qkv, pool, 1, batch, plan, cos_sin, None, None, 1e-5)


@pytest.mark.parametrize("block_size", [16, 48, 80, 128])
@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "head_dim"),
    [
        (torch.float32, torch.float32, 16),
        (torch.float32, torch.float32, 24),
        (torch.float32, FLOAT8, 16),
        (torch.bfloat16, torch.bfloat16, 16),
        (torch.bfloat16, FLOAT8, 24),
    ],
)
def test_the_bits_do_not_depend_on_the_blocks(
    kernels: KernelSet, dtype: torch.dtype, kv_dtype: torch.dtype, head_dim: int, block_size: int
) -> None:
    case = make_case(PagedShape(2, 2, head_dim, 16, LENS), 5, kv_dtype)
    batch, pool, memory = laid_out(case, block_size)
    generator = torch.Generator().manual_seed(1)
    width = (case.num_heads + 4) * head_dim
    qkv = torch.randn(case.num_tokens, width, generator=generator).to(dtype)
    q = qkv[:, : case.num_heads * head_dim].reshape(case.num_tokens, case.num_heads, head_dim)

    dense = attended(kernels, q, case.batch, case.pool)
    assert same_bits(attended(kernels, q, batch, pool), dense)

    stored(kernels, qkv.clone(), case.batch, case.pool, case.num_heads)
    expected = laid_out(case, block_size)[2]
    stored(kernels, qkv.clone(), batch, pool, case.num_heads)
    assert same_bits(memory, expected)
