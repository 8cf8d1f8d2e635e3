"""The Triton set in Triton's interpreter: a few cases of every op, and bits that must agree.

All cases: ``python -m scalesim_kernels check``, which ``nox -s kernels`` runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scalesim_kernels import KernelSet, LoraSite, select
from scalesim_kernels.conformance import PROBLEMS, cases_of, check_case
from scalesim_kernels.conformance.lora import make_lora_case
from scalesim_kernels.conformance.paged import PagedShape, make_case, same_bits
from scalesim_kernels.conformance.steady import steady_interpreter
from scalesim_kernels.philox import uniform
from torch import Tensor

from .test_cpu_reproducible import Context

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, on garbage in masked lanes
]
TRITON = select("triton")


@pytest.fixture(autouse=True)
def rows_stand_alone() -> Iterator[None]:
    with steady_interpreter():
        yield


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("op", PROBLEMS)
def test_conformance(op: str, number: int) -> None:
    case = cases_of(op, (torch.float32, torch.float16))[number]
    verdict = check_case(TRITON, op, case, number)
    assert verdict.faults == (), case


@pytest.mark.parametrize(("group", "num_kv_heads"), [(1, 1), (7, 1), (18, 1)])
def test_decode_and_any_prefill_have_the_same_bits(group: int, num_kv_heads: int) -> None:
    """Across a split's end (position 512) too, and whatever stands beside it."""
    context = Context(group, num_kv_heads, 32, 16, length=530)
    whole = context.attend(TRITON, (0, 500, 530))[0]
    chunks = context.attend(TRITON, (0, 500, 509)) + context.attend(
        TRITON, (1, 0, 3), (0, 509, 530)
    )
    assert same_bits(torch.cat([chunks[0], chunks[2]]), whole)
    for position in (500, 511, 512, 529):
        decode = context.attend(TRITON, (1, 3, 4), (0, position, position + 1), (2, 0, 5))[1]
        assert same_bits(decode[0], whole[position - 500]), position


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("group", [2, 7])
def test_pairs_of_tiles_have_the_bits_of_single_ones(group: int, window: int | None) -> None:
    from scalesim_kernels.triton_set import TritonAttention

    context = Context(group, 1, 32, 16, length=530)
    context.pool, context.q = context.pool.half(), context.q.half()
    found = []
    for paired_from in (0, 10000):
        attention = TritonAttention(4, paired_from)
        kernels = replace(
            TRITON, plan=attention.plan,
            paged_prefill=partial(attention.paged_prefill, window=window),
        )  # fmt: skip
        found.append(context.attend(kernels, (2, 0, 5), (0, 491, 530), (1, 37, 50)))
    assert all(same_bits(a, b) for a, b in zip(*found, strict=True))


def test_a_plan_serves_programs_of_any_number() -> None:
    from scalesim_kernels.triton_set import TritonAttention

    context = Context(2, 2, 16, 16, length=600)
    parts = [(0, 599, 600), (1, 4, 5), (2, 511, 512)]
    want = context.attend(TRITON, *parts)
    for programs in (1, 3, 50):
        attention = TritonAttention(programs)
        kernels = replace(TRITON, plan=attention.plan, paged_decode=attention.paged_decode)
        got = context.attend(kernels, *parts)
        assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(("group", "items"), [(4, [4, 3, 1]), (7, [2, 2, 2, 1, 1])])
def test_sharing_a_prefix_changes_no_bit(group: int, items: list[int]) -> None:
    """Decodes that have the same pages, against copies of these pages: shared whole or in part, by
    more sequences than a tile holds, and not at all."""
    lens = (1100, 1025, 1024, 530, 512, 20, 1060)
    shape = PagedShape(group, 1, 16, 16, tuple((n, 1) for n in lens), padded_seqs=2, shared=1024)
    case = make_case(shape, dtype=torch.float16)
    table, pages = case.batch.block_table.clone(), [case.pool]
    for row, length in zip(case.batch.seq_rows.tolist(), lens, strict=False):
        own = table[row, : -(-length // 16)].long()
        table[row, : len(own)] = torch.arange(len(own)) + sum(map(len, pages))
        pages.append(case.pool[own])
    q, found, counts = torch.randn(len(lens) + 2, group, 16).half(), [], []
    copies = replace(case.batch, block_table=table), torch.cat(pages)
    for batch, pool in ((case.batch, case.pool), copies):
        out = torch.zeros_like(q)
        plan = TRITON.plan(batch, pool, group, True)
        TRITON.paged_decode(q, pool, 1, batch, plan, 0.3, out)
        found.append(out[: len(lens)])
        first, num_items = plan.decode.work.first_item, sum(-(-n // 512) for n in lens)
        assert int(first[-1]) == num_items
        counts.append(plan.decode.shared.counts[:num_items].tolist())
    assert same_bits(*found)
    # the first split has five sequences, the second three; each has another for itself, or one
    shared = [count for count in counts[0] if count > 0]
    assert sum(shared) == num_items and sorted(shared, reverse=True)[: len(items)] == items
    assert set(counts[1]) == {1}


@pytest.mark.parametrize("width", [48, 1100])
@pytest.mark.parametrize("rows", [1, 17, 64, 65])
def test_linear_rows_stand_alone(rows: int, width: int) -> None:
    """For any number of rows, and whoever adds the segments of a wide input: the set's
    ``row_multiple`` is 1."""
    assert TRITON.row_multiple == 1
    x, weight = torch.randn(130, width), torch.randn(40, width)
    full = TRITON.linear(x, weight)
    assert same_bits(TRITON.linear(x[5 : 5 + rows].clone(), weight), full[5 : 5 + rows])


def test_adapters_of_wide_inputs_are_added_in_parts() -> None:
    """Shrink hands partial sums to expand, and a token's bits do not depend on the others."""
    site = LoraSite(0, 2100, (128, 40, 40))
    case, found = make_lora_case((3, 1, 2, 17), site=site), {}
    for name in ("triton", "reference"):
        kernels, out = select(name), case.out.clone()
        h = kernels.lora_shrink(case.x, case.pool, 1, site, case.lora)
        kernels.lora_expand(h, case.pool, 1, site, case.lora, out)
        assert name != "triton" or len(h) == 2
        found[name] = out
    torch.testing.assert_close(found["triton"], found["reference"], rtol=1e-5, atol=1e-4)
    start = int(case.lora.starts[3])
    alone = replace(case.lora, tiles=torch.tensor([[4, 3, start + 16, 1]], dtype=torch.int32))
    out = case.out.clone()
    h = TRITON.lora_shrink(case.x, case.pool, 1, site, alone)
    TRITON.lora_expand(h, case.pool, 1, site, alone, out)
    token = int(case.lora.tokens[start + 16])
    assert same_bits(out[token], found["triton"][token])


def random_rows(num_rows: int, vocab: int) -> tuple[Tensor, ...]:
    rng = np.random.default_rng(vocab)
    logits = torch.randn(num_rows, vocab) * 3
    logits[::2] = (logits[::2] * 2).round() / 2  # ties
    return (
        logits,
        torch.from_numpy(rng.choice([0, 0.5, 1, 1.5, 1e-30, 1e30], num_rows).astype(np.float32)),
        torch.from_numpy(rng.choice([0, 0, 1, 3, 50, 10000], num_rows).astype(np.int32)),
        torch.from_numpy(rng.choice([1, 1, 0.9, 0.5, 0], num_rows).astype(np.float32)),
        torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, num_rows)),
        torch.from_numpy(rng.integers(0, 10000, num_rows).astype(np.int32)),
    )


@pytest.mark.parametrize("vocab", [12, 1100])
def test_sampling_gives_the_references_tokens(vocab: int) -> None:
    inputs = random_rows(24, vocab)
    assert torch.equal(TRITON.sample(*inputs), select("reference").sample(*inputs))


def test_draws_are_philox() -> None:
    """With equal weights a row's token is the draw itself, to 10 bits."""
    _, _, _, _, keys, positions = random_rows(8, 1024)
    ones, zeros = torch.ones(8), torch.zeros(8, dtype=torch.int32)
    tokens = TRITON.sample(torch.zeros(8, 1024), ones, zeros, ones, keys, positions)
    assert tokens.tolist() == np.floor(uniform(keys.numpy(), positions.numpy()) * 1024).tolist()


def test_wrong_shapes_say_what_is_taken() -> None:
    batch = Context(1, 1, 16, 16).batch((0, 0, 1))
    for shape, words in [
        ((2, 1, 2, 1, 16, 24), "head_dim=24"),
        ((2, 1, 2, 1, 8, 16), "block_size=8"),
    ]:
        with pytest.raises(ValueError, match=words):
            TRITON.plan(batch, torch.zeros(shape), 1, True)
    with pytest.raises(ValueError, match="C-contiguous"):
        TRITON.linear(torch.zeros(16, 8).T, torch.zeros(4, 16))


def test_without_a_gpu_cuda_is_refused() -> None:
    if torch.cuda.is_available():
        assert isinstance(select("cuda"), KernelSet)
    else:
        with pytest.raises(ValueError, match="torch finds no CUDA device"):
            select("cuda:0")
