"""Matrices that a CPU holds in bf16 without loss, and multiplies in fp32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from scalesim_kernels import KernelSet
from scalesim_kernels.cpu import cpu_kernels
from scalesim_kernels.cpu_rows import HAS_NUMBA
from torch import Tensor

pytestmark = pytest.mark.skipif(not HAS_NUMBA, reason="needs numba")
SIZES = [(1, 64), (40, 64), (128, 192), (333, 128), (1024, 64), (1100, 64), (2304, 320)]
COUNTS = (1, 2, 3, 5, 6, 7, 12, 13, 64, 128, 129, 300)


@pytest.fixture(params=[True, False], ids=["reproducible", "not reproducible"])
def kernels(request: pytest.FixtureRequest) -> KernelSet:
    return cpu_kernels(request.param)


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def in_bf16(*shape: int, seed: int = 0) -> Tensor:
    """Random fp32 numbers that bf16 has."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


def num_bytes(packed: Tensor) -> int:
    return packed.numel() * packed.dtype.itemsize


def test_half_of_the_bytes_where_nothing_is_lost(kernels: KernelSet) -> None:
    weight = in_bf16(128, 96)
    assert num_bytes(kernels.pack_weight(weight)) == 2 * 128 * 96
    weight[127, 95] += 2.0**-20
    assert num_bytes(kernels.pack_weight(weight)) >= 4 * 128 * 96


def test_columns_that_make_no_whole_panels(kernels: KernelSet) -> None:
    weight, x = in_bf16(100, 64), torch.randn(3, 64)
    assert torch.allclose(kernels.linear(x, kernels.pack_weight(weight)), x @ weight.T, atol=1e-4)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("width", "out"), SIZES)
def test_products_are_those_of_fp32(kernels: KernelSet, width: int, out: int, bias: bool) -> None:
    weight, extra = in_bf16(out, width), torch.randn(out) if bias else None
    packed = kernels.pack_weight(weight)
    for count in COUNTS:
        x = torch.randn(count, width)
        want = x.double() @ weight.double().T + (0.0 if extra is None else extra.double())
        got = kernels.linear(x, packed, extra)
        assert got.dtype == torch.float32
        assert float((got - want).norm() / want.norm()) < 1e-6, count


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("width", "out"), SIZES)
def test_rows_stand_alone(kernels: KernelSet, width: int, out: int, bias: bool) -> None:
    packed = kernels.pack_weight(in_bf16(out, width))
    extra, x = torch.randn(out) if bias else None, torch.randn(max(COUNTS) + 5, width)
    whole = kernels.linear(x, packed, extra)
    for count in COUNTS:
        part = x[5 : 5 + count].clone()
        assert torch.equal(kernels.linear(part, packed, extra), whole[5 : 5 + count]), count
        part[1:] = torch.nan
        assert torch.equal(kernels.linear(part, packed, extra)[0], whole[5]), count


def test_the_same_bits_with_any_threads() -> None:
    packed, x = cpu_kernels().pack_weight(in_bf16(640, 1500)), torch.randn(70, 1500)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(cpu_kernels().linear(x, packed))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("count", [1, 20], ids=["one tile", "several"])
def test_each_number_of_bf16_is_widened(count: int) -> None:
    """One product each, so nothing is rounded: subnormal ones, infinities and both zeros too."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    numbers = patterns.view(torch.bfloat16).float()
    weight = numbers[~numbers.isnan()][:65024].view(-1, 1)
    packed = cpu_kernels().pack_weight(weight)
    assert num_bytes(packed) == 2 * weight.numel()
    got = cpu_kernels().linear(torch.ones(count, 1), packed)
    assert torch.equal(got, weight.T.expand(count, -1))


def test_no_rows(kernels: KernelSet) -> None:
    packed = kernels.pack_weight(in_bf16(64, 32))
    assert kernels.linear(torch.empty(0, 32), packed).shape == (0, 64)
