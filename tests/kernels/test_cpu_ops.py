"""Every op of the CPU set against the specification, with garbage in all unused bytes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scalesim_kernels import KernelSet, select
from scalesim_kernels.cpu import cpu_kernels
from scalesim_kernels.cpu_rows import HAS_NUMBA
from torch import Tensor

from .paged_cases import SHAPES, PagedCase, PagedShape, garbage, make_case

REFERENCE = select("reference")


@pytest.fixture(params=[True, False], ids=["compiled", "torch"])
def cpu(request: pytest.FixtureRequest) -> KernelSet:
    """Both forms of the set."""
    return cpu_kernels(compiled=request.param and HAS_NUMBA)


def assert_close(got: Tensor, want: Tensor) -> None:
    assert torch.isfinite(want).all(), "the specification itself read garbage"
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def attend(
    kernels: KernelSet, case: PagedCase, q: Tensor, layer: int, reproducible: bool
) -> Tensor:
    out = torch.full(q.shape, 123.0)
    plan = kernels.plan(case.batch, case.pool, case.num_heads, reproducible)
    kernels.paged_decode(q, case.pool, layer, case.batch, plan, 0.3, out)
    kernels.paged_prefill(q, case.pool, layer, case.batch, plan, 0.3, out)
    return out[: case.num_valid]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention(cpu: KernelSet, shape: PagedShape) -> None:
    case = make_case(shape)
    q = torch.randn(case.num_tokens, case.num_heads, shape.head_dim)
    for layer in (0, 1):
        want = attend(REFERENCE, case, q, layer, True)
        assert_close(attend(cpu, case, q, layer, True), want)
        assert_close(attend(cpu, case, q, layer, False), want)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_kind_writes_only_its_rows(cpu: KernelSet, shape: PagedShape) -> None:
    case = make_case(shape)
    q = torch.randn(case.num_tokens, case.num_heads, shape.head_dim)
    plan = cpu.plan(case.batch, case.pool, case.num_heads, True)
    out = torch.full(q.shape, 123.0)
    cpu.paged_decode(q, case.pool, 0, case.batch, plan, 0.3, out)
    assert (out[case.batch.num_decodes :] == 123).all()
    out = torch.full(q.shape, 123.0)
    cpu.paged_prefill(q, case.pool, 0, case.batch, plan, 0.3, out)
    assert (out[: case.batch.num_decodes] == 123).all()


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rope_and_store(cpu: KernelSet, shape: PagedShape, qk_norm: bool) -> None:
    case = make_case(shape)
    width = (case.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    qkv, cos_sin = torch.randn(case.num_tokens, width), torch.randn(700, shape.head_dim)
    norms = [torch.randn(shape.head_dim) if qk_norm else None for _ in range(2)]
    results = []
    for kernels in (REFERENCE, cpu):
        pool = case.pool.clone()
        plan = kernels.plan(case.batch, pool, case.num_heads, True)
        q = kernels.qk_norm_rope_store(
            qkv.clone(), pool, 1, case.batch, plan, cos_sin, norms[0], norms[1], 1e-5
        )
        results.append((q[: case.num_valid], pool))
    (want_q, want_pool), (q, pool) = results
    assert_close(q, want_q)
    written = ~(want_pool.view(torch.int32) == case.pool.view(torch.int32))
    assert written.any()
    assert_close(pool[written], want_pool[written])
    assert same_bits(pool[~written], case.pool[~written])


@pytest.mark.parametrize("hidden", [16, 48, 100, 512, 1000])
def test_rms_norm(cpu: KernelSet, hidden: int) -> None:
    x, weight, residual = torch.randn(48, hidden), torch.randn(hidden), torch.randn(48, hidden)
    for rest in (None, residual):
        want = REFERENCE.rms_norm(x, weight, 1e-6, rest)
        got = cpu.rms_norm(x, weight, 1e-6, None if rest is None else rest.clone())
        assert_close(got[0], want[0])
        assert_close(got[1], want[1])


@pytest.mark.parametrize("width", [8, 33, 160, 1408])
def test_silu_mul(cpu: KernelSet, width: int) -> None:
    gate_up = torch.randn(33, 2 * width) * 5
    assert_close(cpu.silu_mul(gate_up.clone()), REFERENCE.silu_mul(gate_up))


@pytest.mark.parametrize("bias", [False, True])
def test_linear(cpu: KernelSet, bias: bool) -> None:
    x, weight, extra = torch.randn(32, 96), torch.randn(50, 96), torch.randn(50) if bias else None
    want = REFERENCE.linear(x, weight, extra)
    assert_close(cpu.linear(x, weight, extra), want)
    assert_close(cpu.linear(x, cpu.pack_weight(weight), extra), want)


@pytest.mark.parametrize("kernels", [REFERENCE, select("cpu")], ids=["reference", "cpu"])
def test_copy_and_zero_pages_keep_every_bit(kernels: KernelSet) -> None:
    before = garbage((9, 2, 2, 2, 16, 16), 3)
    pool = before.clone()
    kernels.copy_pages(pool, torch.tensor([7, 1]), torch.tensor([0, 4]))
    kernels.zero_pages(pool, torch.tensor([8]))
    assert same_bits(pool[[0, 4]], before[[7, 1]])
    assert same_bits(pool[[1, 2, 3, 5, 6, 7]], before[[1, 2, 3, 5, 6, 7]])
    assert (pool[8].view(torch.int32) == 0).all()


def test_replace_one_op(cpu: KernelSet) -> None:
    mine = replace(cpu, silu_mul=REFERENCE.silu_mul)
    assert mine.silu_mul is REFERENCE.silu_mul
    assert mine.linear is cpu.linear


def test_select_names_what_there_is() -> None:
    assert select().name == select("cpu").name == "cpu"
    with pytest.raises(ValueError, match=r"torch finds no CUDA device"):
        select("cuda:0")
    with pytest.raises(ValueError, match=r"'tpu': known are auto, cpu, cuda, triton, reference"):
        select("tpu")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_attention(cpu: KernelSet, dtype: torch.dtype) -> None:
    case = make_case(SHAPES[2])
    case = replace(case, pool=torch.where(case.valid_slots(), case.pool, torch.nan).to(dtype))
    q = torch.randn(case.num_tokens, case.num_heads, 32).to(dtype)
    out, want = torch.zeros_like(q), torch.zeros_like(q)
    for kernels, into in ((cpu, out), (REFERENCE, want)):
        plan = kernels.plan(case.batch, case.pool, case.num_heads, True)
        kernels.paged_decode(q, case.pool, 0, case.batch, plan, 0.3, into)
        kernels.paged_prefill(q, case.pool, 0, case.batch, plan, 0.3, into)
    error = (out - want)[: case.num_valid].float().abs().max()
    assert float(error) < np.finfo(np.float16).eps * (4 if dtype == torch.float16 else 32)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, scalesim_kernels; assert not {'torch', 'scalesim'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not HAS_NUMBA, reason="needs numba")
def test_a_kernel_is_compiled_once() -> None:
    from scalesim_kernels.cpu_kernel import compilations, job, kernel

    def nothing(pointer: object) -> None:
        pass

    kernel(job("NoJob", "number"))(nothing)  # compiled here, or by an earlier run
    before = list(compilations.names)
    kernel(job("NoJob", "number"))(nothing)
    assert compilations.names == before
