"""A row's bits on the CPU: alone, among others, at any place, whatever the others hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scalesim_kernels import KernelSet, PagedBatch, select
from scalesim_kernels.cpu import cpu_kernels
from scalesim_kernels.cpu_rows import HAS_NUMBA, linear_product, pack_weight
from torch import Tensor

SIZES = [(48, 33), (64, 96), (112, 200), (384, 1024), (896, 1152), (1408, 512), (512, 4096)]
ROWS = 512


@pytest.fixture
def cpu() -> KernelSet:
    return select("cpu")


def assert_rows_alone(full: Tensor, run: object, x: Tensor) -> None:
    """``run`` on windows of ``x`` gives the rows of ``full``, bit by bit."""
    assert callable(run)
    for rows in (1, 3, 16, 32, 37, 48, 80, 256):
        for first in (0, 5, 16, 37):
            part = x[first : first + rows].clone()
            got = run(part)
            assert torch.equal(got, full[first : first + rows]), (rows, first)
            part[1:] = torch.nan
            assert torch.equal(run(part)[0], full[first]), "a neighbour's NaN changed a row"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("width", "out"), SIZES)
def test_linear_rows(cpu: KernelSet, width: int, out: int, bias: bool, packed: bool) -> None:
    x, weight = torch.randn(ROWS, width), torch.randn(out, width)
    weight = cpu.pack_weight(weight) if packed else weight
    extra = torch.randn(out) if bias else None
    assert_rows_alone(cpu.linear(x, weight, extra), lambda p: cpu.linear(p, weight, extra), x)


@pytest.mark.parametrize("hidden", [48, 100, 512, 1000])
def test_rms_norm_rows(cpu: KernelSet, hidden: int) -> None:
    x, weight = torch.randn(ROWS, hidden), torch.randn(hidden)

    def run(part: Tensor) -> Tensor:
        return cpu.rms_norm(part, weight, 1e-6)[0]

    assert_rows_alone(run(x), run, x)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("width", [33, 160, 1000, 1408])
def test_silu_mul_rows(cpu: KernelSet, width: int, threads: int) -> None:
    x = torch.randn(ROWS, 2 * width)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_rows_alone(cpu.silu_mul(x.clone()), lambda p: cpu.silu_mul(p.clone()), x)
    finally:
        torch.set_num_threads(before)


class Context:
    """One long sequence per row of a pool with scattered pages; attention over any part of it."""

    def __init__(
        self, group: int, num_kv_heads: int, head_dim: int, block_size: int, length: int = 210
    ) -> None:
        self.length, self.num_heads = length, group * num_kv_heads
        blocks = -(-self.length // block_size)
        self.pool = torch.randn((3 * blocks + 1, 1, 2, num_kv_heads, block_size, head_dim))
        self.table = np.zeros((4, blocks), np.int32)
        self.table[1:] = np.random.default_rng(0).permutation(3 * blocks).reshape(3, blocks) + 1
        self.q = torch.randn((3, self.length, self.num_heads, head_dim))

    def batch(self, *parts: tuple[int, int, int]) -> PagedBatch:
        """(sequence, start, stop) parts in one batch, decodes first."""
        counts = [stop - start for _, start, stop in parts]
        positions = np.concatenate([np.arange(a, b) for _, a, b in parts])
        rows = np.array([seq + 1 for seq, _, _ in parts])

        def int32(values: object) -> Tensor:
            return torch.from_numpy(np.asarray(values, np.int32))

        return PagedBatch(
            int32(self.table), int32(positions), int32(np.repeat(rows, counts)), int32(rows),
            int32(np.cumsum([0, *counts])), int32([b for _, _, b in parts]), counts.count(1),
        )  # fmt: skip

    def attend(
        self, kernels: KernelSet, *parts: tuple[int, int, int], **options: Any
    ) -> list[Tensor]:
        """Attention of the parts, one result each."""
        batch = self.batch(*parts)
        q = torch.cat([self.q[seq, a:b] for seq, a, b in parts])
        plan, out = kernels.plan(batch, self.pool, self.num_heads, True), torch.empty_like(q)
        kernels.paged_decode(q, self.pool, 0, batch, plan, 0.2, out, **options)
        kernels.paged_prefill(q, self.pool, 0, batch, plan, 0.2, out, **options)
        return list(out.split([stop - start for _, start, stop in parts]))


HEADS = [
    (1, 4, 64),
    (2, 1, 16),
    (3, 2, 64),
    (4, 2, 32),
    (7, 1, 128),
    (8, 1, 64),
    (12, 1, 32),
    (18, 1, 16),
    (3, 1, 24),
]
FORMS = [(True, *heads) for heads in HEADS] + [(False, 3, 2, 64), (False, 4, 2, 32)]


@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize(("compiled", "group", "num_kv_heads", "head_dim"), FORMS)
def test_attention_rows(
    compiled: bool, group: int, num_kv_heads: int, head_dim: int, block_size: int
) -> None:
    """Of both forms of the set; a head of 24 elements is left to torch by both."""
    cpu = cpu_kernels(compiled=compiled and HAS_NUMBA)
    context = Context(group, num_kv_heads, head_dim, block_size)
    end = context.length
    whole = context.attend(cpu, (0, 0, end))[0]
    for start in range(0, end, 7):
        stop = min(start + 7, end)
        first, last = context.attend(cpu, (1, 30, 31), (0, start, stop))[1], start + 7 >= end
        assert torch.equal(first, whole[start:stop]), ("chunk", start, last)
    for position in (0, 1, 15, 16, 62, 63, 64, 127, 128, 200, end - 1):
        part = (0, position, position + 1)
        alone = context.attend(cpu, part)[0]
        among = context.attend(cpu, (1, 99, 100), part, (2, 70, 71), (2, 100, 150))[1]
        assert torch.equal(alone, whole[position : position + 1]), ("decode", position)
        assert torch.equal(among, alone), ("decode in a batch", position)


@pytest.mark.parametrize("soft_cap", [None, 3.0])
@pytest.mark.parametrize("window", [1, 5, 64, 100])
@pytest.mark.parametrize("group", [1, 3, 5, 16])
def test_attention_rows_in_windows(
    cpu: KernelSet, group: int, window: int, soft_cap: float | None
) -> None:
    """However many rows are computed together, and whether they see a tile, or all of them do."""
    context = Context(group, 1, 48, 16)
    options: dict[str, Any] = {"window": window, "soft_cap": soft_cap}
    whole = context.attend(cpu, (0, 0, context.length), **options)[0]
    for start, stop in ((0, 1), (60, 70), (63, 64), (100, 102), (100, 103), (150, 171)):
        got = context.attend(cpu, (1, 7, 8), (0, start, stop), **options)[1]
        assert torch.equal(got, whole[start:stop]), (start, stop)


def test_a_sequence_with_nan_keeps_it_to_itself(cpu: KernelSet) -> None:
    context = Context(4, 2, 32, 16)
    parts = ((0, 99, 100), (1, 99, 100), (0, 100, 170), (1, 100, 170))
    clean = context.attend(cpu, *parts)
    context.pool[context.table[1, 3]] = torch.nan
    dirty = context.attend(cpu, *parts)
    assert torch.equal(dirty[1], clean[1])
    assert torch.equal(dirty[3], clean[3])
    assert dirty[0].isnan().all()


@pytest.mark.skipif(not HAS_NUMBA, reason="needs numba")
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("width", "out"), [(48, 64), (384, 640), (1536, 320), (2304, 64)])
def test_few_rows_have_the_bits_of_many(width: int, out: int, bias: bool, threads: int) -> None:
    """By our own kernel, where its bits are the library's; among zeros first, which agree with
    anything."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, weight, extra = torch.randn(80, width), torch.randn(out, width), torch.randn(out)
        linear_product(pack_weight(torch.zeros(out, width)), extra if bias else None)(x)
        product = linear_product(pack_weight(weight), extra if bias else None)
        whole = product(x)
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 16, 37, 64):
            assert torch.equal(product(x[3 : 3 + rows]), whole[3 : 3 + rows]), rows
        if threads == 1 and torch.backends.cpu.get_cpu_capability() == "AVX2":
            assert product.ask(width, torch.float32).few  # or nothing was shown
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not HAS_NUMBA, reason="needs numba")
def test_compiled_kernels_have_the_same_bits_with_any_threads(cpu: KernelSet) -> None:
    context = Context(3, 2, 64, 16)
    parts = ((1, 99, 100), (2, 200, 201), (0, 3, 210), (1, 100, 170))
    x, weight = torch.randn(700, 768), torch.randn(768)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found.append(
                [
                    *context.attend(cpu, *parts),
                    cpu.rms_norm(x, weight, 1e-6)[0],
                    cpu.silu_mul(x),
                    cpu.gelu_mul(x),
                ]
            )
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))
