"""The sampler: its distribution, its cuts, its generator, and that rows are on their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scalesim_kernels import KernelSet, select
from scalesim_kernels.cpu import cpu_kernels
from scalesim_kernels.philox import philox4x32, uniform
from torch import Tensor

SETS = [
    select("reference"),
    select("cpu"),
    replace(cpu_kernels(compiled=False), name="without numba"),
]


def draw(
    kernels: KernelSet, logits: Tensor, temperature: float = 1.0, top_k: int = 0,
    top_p: float = 1.0, key: int = 1, first: int = 0,
) -> Tensor:  # fmt: skip
    """Every row with the same parameters and key, at positions ``first``, ``first + 1``, ..."""
    n = len(logits)
    return kernels.sample(
        logits,
        torch.full((n,), temperature),
        torch.full((n,), top_k, dtype=torch.int32),
        torch.full((n,), top_p),
        torch.full((n,), key),
        torch.arange(first, first + n, dtype=torch.int32),
    )


def words(*values: int) -> tuple[np.ndarray, ...]:  # type: ignore[type-arg]
    return tuple(np.array([v], np.uint64) for v in values)


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], want: tuple[int, ...]
) -> None:
    """The known-answer vectors of the generator's authors (Random123)."""
    got = philox4x32(words(*counter), words(*key))  # type: ignore[arg-type]
    assert tuple(int(word[0]) for word in got) == want


@pytest.mark.parametrize("kernels", SETS, ids=lambda k: k.name)
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 5, 1.0), (1.3, 9, 0.8)]
)
def test_distribution_by_chi_square(
    kernels: KernelSet, temperature: float, top_k: int, top_p: float
) -> None:
    num_draws = 4000
    row = torch.linspace(-2, 2, 12)[torch.randperm(12)]
    want = by_hand(row.tolist(), temperature, top_k, top_p)
    tokens = draw(kernels, row.repeat(num_draws, 1), temperature, top_k, top_p, key=99)
    counts = np.bincount(tokens.numpy(), minlength=12)
    kept = want > 0
    assert counts[~kept].sum() == 0
    chi_square = (((counts - num_draws * want) ** 2)[kept] / (num_draws * want[kept])).sum()
    degrees = int(kept.sum()) - 1
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)  # 4 standard deviations


def by_hand(row: list[float], temperature: float, top_k: int, top_p: float) -> np.ndarray:  # type: ignore[type-arg]
    """Probabilities by sorting and adding up in a plain loop."""
    weights = np.exp((np.array(row, np.float32) - np.float32(max(row))) / np.float32(temperature))
    order = sorted(range(len(row)), key=lambda i: (-weights[i], i))
    order = order[:top_k] if top_k else order
    total, mass, kept = sum(float(weights[i]) for i in order), 0.0, []
    for i in order:
        kept.append(i)
        mass += float(weights[i])
        if mass >= float(np.float32(top_p)) * total and top_p < 1:
            break
    result = np.zeros(len(row))
    result[kept] = weights[kept]
    return result / result.sum()


@given(
    row=st.lists(st.sampled_from([-3.0, -1.0, -0.5, 0.0, 0.25, 1.0, 2.0]), min_size=2, max_size=9),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.integers(0, 10),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.77, 0.95, 1.0]),
)
def test_cuts_against_brute_force(
    row: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    """Ties included: the values repeat."""
    want = by_hand(row, temperature, top_k, top_p)
    logits = torch.tensor(row).repeat(64, 1)
    edges = np.cumsum(want)
    draws = uniform(np.full(64, 5), np.arange(64))
    clear = np.abs(draws[:, None] - edges).min(axis=1) > 1e-5
    for kernels in SETS:
        tokens = draw(kernels, logits, temperature, top_k, top_p, key=5).numpy()
        assert (tokens[clear] == np.searchsorted(edges, draws[clear], side="right")).all()


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (0, 0.9), (50, 1.0), (700, 0.3), (9, 0.0)])
@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_large_vocabularies(top_k: int, top_p: float, spread: float) -> None:
    """All forms draw the same, but where a draw falls on the edge of a token."""
    logits = spread * torch.randn(64, 5003)
    first, *others = [draw(kernels, logits, 0.8, top_k, top_p) for kernels in SETS]
    for tokens in others:
        assert (tokens == first).sum() >= 62


@pytest.mark.parametrize("kernels", SETS, ids=lambda k: k.name)
def test_greedy_ties_go_to_the_lowest_id(kernels: KernelSet) -> None:
    logits = torch.zeros(3, 50)
    logits[0, [7, 30]] = 2
    logits[1, 49] = 1
    assert draw(kernels, logits, temperature=0).tolist() == [7, 49, 0]


@pytest.mark.parametrize("kernels", SETS, ids=lambda k: k.name)
def test_rows_that_are_not_finite_give_no_token(kernels: KernelSet) -> None:
    logits = torch.randn(6, 40)
    want = draw(kernels, logits).tolist()
    for row, value in ((1, torch.nan), (2, torch.inf), (4, -torch.inf)):
        logits[row, 11] = value
        want[row] = -1
    assert draw(kernels, logits).tolist() == want


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1e30])
def test_extreme_temperatures(temperature: float) -> None:
    logits = torch.randn(20, 40) * 100
    tokens = draw(SETS[1], logits, temperature)
    assert ((tokens >= 0) & (tokens < 40)).all()
    if temperature < 1e-2:
        assert torch.equal(tokens, logits.argmax(-1).int())


def test_a_row_does_not_depend_on_the_others() -> None:
    """Alone, in batches of every size, at odd offsets in memory: the same tokens."""
    rows, vocab = 40, 1003
    memory = torch.randn(rows * vocab + 3)
    logits = memory[3:].view(rows, vocab)
    rng = np.random.default_rng(0)
    columns = (
        torch.from_numpy(rng.choice([0.0, 0.5, 1.0, 1.5], rows).astype(np.float32)),
        torch.from_numpy(rng.choice([0, 0, 3, 50], rows).astype(np.int32)),
        torch.from_numpy(rng.choice([1.0, 1.0, 0.9], rows).astype(np.float32)),
        torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, rows)),
        torch.from_numpy(rng.integers(0, 10000, rows).astype(np.int32)),
    )
    want = SETS[1].sample(logits, *columns)
    assert torch.equal(want, SETS[0].sample(logits, *columns))
    for size in (1, 2, 7, 16):
        for first in range(0, rows, size):
            part = slice(first, first + size)
            got = SETS[1].sample(logits[part].clone(), *(c[part].clone() for c in columns))
            assert torch.equal(got, want[part])


def test_no_rows() -> None:
    assert draw(SETS[1], torch.zeros(0, 10)).shape == (0,)
