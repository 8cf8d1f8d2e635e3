"""Step costs: prefill beside decodes, where the two overlap, and only there."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scalesim.replay.hardware import HARDWARE, MODELS, CostModel, StepWork
from scalesim.scheduler.step_costs import MeasuredCosts

DECODE_S, ROW_S, TOKEN_S = 0.02, 0.0002, 0.0001


def measured(overlaps: bool, seed: int) -> MeasuredCosts:
    """Costs after the steps of a device on which prefill and decodes overlap, or do not."""
    costs, rng = MeasuredCosts(), np.random.default_rng(seed)
    for _ in range(600):
        num_decodes = int(rng.integers(0, 17))
        tokens = int(rng.integers(0, 3) and rng.integers(8, 1024))
        if not num_decodes and not tokens:
            continue
        decode_s = DECODE_S + ROW_S * num_decodes if num_decodes else 0.0
        parts = (decode_s, TOKEN_S * tokens)
        noise = 1.0 + 0.05 * float(rng.standard_normal())
        costs.took(num_decodes, tokens, noise * (max(parts) if overlaps else sum(parts)))
    return costs


@pytest.mark.parametrize("seed", range(5))
def test_where_the_two_overlap_prefill_fills_the_step_of_the_decodes(seed: int) -> None:
    costs = measured(True, seed)
    for num_decodes in (2, 8, 16):
        balanced = (DECODE_S + ROW_S * num_decodes) / TOKEN_S
        assert costs.balanced_tokens(num_decodes, 0, 0) == pytest.approx(balanced, rel=0.15)


@pytest.mark.parametrize("seed", range(5))
def test_where_costs_add_up_prefill_takes_all_it_may(seed: int) -> None:
    costs = measured(False, seed)
    assert costs.overlap < 0.25 and costs.balanced_tokens(8, 0, 0) == math.inf


def test_what_was_not_measured_bounds_nothing() -> None:
    costs = MeasuredCosts()
    assert costs.balanced_tokens(8, 0, 0) == math.inf
    costs.took(8, 100, 0.5)
    costs.took(8, 0, 0.0)
    costs.took(0, 100, 0.0)
    costs.took(8, 100, 0.0)
    assert costs.balanced_tokens(8, 0, 0) == math.inf


@pytest.mark.parametrize("name", ["h100", "rtx4090"])
def test_a_balanced_step_of_the_hardware_model_computes_as_long_as_it_reads(name: str) -> None:
    cost = CostModel(HARDWARE[name], MODELS["qwen2.5-7b"])
    count = cost.balanced_tokens(16, 16 * 4000, 4000)
    pairs = 16 * 4000 + int(count) * 4000
    work = StepWork(16 + int(count), 16 * 4000, pairs)
    compute_s, read_s = cost.compute_s(cost.flops(work)), cost.read_s(cost.read_bytes(work))
    assert 0.98 * read_s < compute_s <= read_s
