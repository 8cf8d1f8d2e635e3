"""Penalties, biases, masks and min_p: exactly transformers' processors on fixed logits, and the
distributions that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from scalesim_kernels import Adjustments, KernelSet, select
from scalesim_kernels.contracts import RULED_OUT
from torch import Tensor
from transformers.generation import logits_process as hf

SETS = [select("reference"), select("cpu"), select("triton")]
VOCAB = 203
PROMPT, OUTPUT = [5, 9, 9, 140, 7], [9, 9, 33, 9, 202]
SAID = torch.tensor([PROMPT + OUTPUT])
LOGITS = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(4)) * 3


def changes(
    *, temperature: float = 1.0, min_p: float = 0.0, repetition: float = 1.0,
    presence: float = 0.0, frequency: float = 0.0, bias: Mapping[int, float] | None = None,
    allowed: list[int] | None = None,
) -> Adjustments:  # fmt: skip
    def floats(*values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float32)

    def ints(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    counts = 2 * np.bincount(OUTPUT, minlength=VOCAB) + np.isin(np.arange(VOCAB), PROMPT)
    bits = np.zeros(-(-VOCAB // 32) * 32, np.bool_)
    bits[list(range(VOCAB)) if allowed is None else allowed] = True
    masks = torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int32))[None]
    bias = bias or {}
    return Adjustments(
        ints(0), floats(temperature), floats(min_p), floats(repetition), floats(presence),
        floats(frequency), ints(0), torch.from_numpy(counts.astype(np.int32))[None],
        ints(0, len(bias)), ints(*bias), floats(*bias.values()),
        ints(-1 if allowed is None else 0), masks,
    )  # fmt: skip


def hand_made(frequency: float, presence: float) -> Callable[[Tensor, Tensor], Tensor]:
    """OpenAI's formula, in a plain loop: transformers has no such processors."""

    def apply(ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        for token in set(OUTPUT):
            scores[0, token] = scores[0, token] - OUTPUT.count(token) * torch.tensor(frequency)
            scores[0, token] = scores[0, token] - torch.tensor(presence)
        return scores

    return apply


CASES: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "repetition": ({"repetition": 1.3}, [hf.RepetitionPenaltyLogitsProcessor(1.3)]),
    "repetition below 1": ({"repetition": 0.7}, [hf.RepetitionPenaltyLogitsProcessor(0.7)]),
    "bias": (
        {"bias": {3: 2.5, 9: -1.25, 200: 100.0}},
        [hf.SequenceBiasLogitsProcessor([[[3], 2.5], [[9], -1.25], [[200], 100.0]])],
    ),
    "ban": ({"bias": {9: -float("inf")}}, [hf.SuppressTokensLogitsProcessor([9])]),
    "min_tokens": (
        {"bias": {33: -float("inf"), 7: -float("inf")}},
        [hf.MinNewTokensLengthLogitsProcessor(len(PROMPT), len(OUTPUT) + 1, [33, 7])],
    ),
    "mask": (
        {"allowed": [1, 9, 31, 32, 202]},
        [hf.PrefixConstrainedLogitsProcessor(lambda batch, ids: [1, 9, 31, 32, 202], 1)],
    ),
    "frequency": ({"frequency": 0.3}, [hand_made(0.3, 0.0)]),
    "presence": ({"presence": -1.7}, [hand_made(0.0, -1.7)]),
    "min_p": ({"min_p": 0.04}, [hf.MinPLogitsWarper(0.04)]),
    "min_p, warm": (
        {"min_p": 0.04, "temperature": 1.7},
        [hf.TemperatureLogitsWarper(1.7), hf.MinPLogitsWarper(0.04)],
    ),
    "everything": (
        {
            "bias": {3: 2.5, 140: 4.0}, "repetition": 1.2, "frequency": 0.25, "presence": 0.5,
            "allowed": list(range(0, VOCAB, 2)), "min_p": 0.02, "temperature": 0.8,
        },
        [
            hf.SequenceBiasLogitsProcessor([[[3], 2.5], [[140], 4.0]]),
            hf.RepetitionPenaltyLogitsProcessor(1.2), hand_made(0.25, 0.5),
            hf.PrefixConstrainedLogitsProcessor(lambda batch, ids: list(range(0, VOCAB, 2)), 1),
            hf.TemperatureLogitsWarper(0.8), hf.MinPLogitsWarper(0.02),
        ],
    ),
}  # fmt: skip


def by_transformers(processors: list[Any]) -> Tensor:
    scores = LOGITS.clone()
    for processor in processors:
        scores = processor(SAID, scores)
    return scores[0]


@pytest.mark.parametrize("kernels", SETS, ids=lambda k: k.name)
@pytest.mark.parametrize("case", CASES)
def test_exactly_what_transformers_processors_give(kernels: KernelSet, case: str) -> None:
    """Bit by bit where no temperature divides them (we apply it when sampling)."""
    params, processors = CASES[case]
    got = kernels.adjust_logits(LOGITS, changes(**params))[0]
    want = by_transformers(processors)
    assert torch.equal(got == RULED_OUT, want == -torch.inf)
    kept = want > -torch.inf
    if params.get("temperature", 1.0) == 1.0:
        assert torch.equal(got[kept], want[kept])
    else:
        assert torch.equal(got[kept] / params["temperature"], want[kept])


@pytest.mark.parametrize("case", CASES)
def test_distributions_by_chi_square(case: str) -> None:
    """4 000 draws at fixed keys against the softmax of transformers' scores."""
    kernels, num_draws = SETS[1], 4000
    params, processors = CASES[case]
    want = torch.softmax(by_transformers(processors).double(), -1).numpy()
    adjusted = kernels.adjust_logits(LOGITS, changes(**params)).expand(num_draws, -1)
    temperatures = torch.full((num_draws,), params.get("temperature", 1.0))
    zeros = torch.zeros(num_draws, dtype=torch.int32)
    tokens = kernels.sample(
        adjusted.contiguous(), temperatures, zeros, torch.ones(num_draws),
        torch.full((num_draws,), 77), torch.arange(num_draws, dtype=torch.int32),
    )  # fmt: skip
    counts = np.bincount(tokens.numpy(), minlength=VOCAB)
    assert counts[want == 0].sum() == 0
    often = num_draws * want >= 5  # the others are one class
    rest = max(num_draws * want[~often].sum(), 1e-9)
    chi_square = ((counts - num_draws * want) ** 2 / np.maximum(num_draws * want, 1e-30))[often]
    total = chi_square.sum() + (counts[~often].sum() - num_draws * want[~often].sum()) ** 2 / rest
    degrees = max(int(often.sum()), 1)
    assert total < degrees + 4 * np.sqrt(2 * degrees)


def test_the_logits_stay_as_they_are() -> None:
    for kernels in SETS:
        before = LOGITS.clone()
        kernels.adjust_logits(LOGITS, changes(bias={1: 1.0}, repetition=2.0, allowed=[3]))
        assert torch.equal(LOGITS, before)
