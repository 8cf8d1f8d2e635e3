"""Sampling of the CPU set, compiled by numba: a row each item, without a sort of the vocabulary.

A token's mass is its weight in units of 2⁻⁴⁰ of the largest, as an integer, as in the Triton set:
sums of integers are the same in any order. A cut finds the weight at which a goal is reached ten
bits at a time: a vocabulary is never sorted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from .cpu_kernel import job, kernel
from .cpu_lanes import (
    WIDTH,
    add,
    divide,
    doubles,
    exp,
    fill,
    floats,
    fma,
    ints,
    larger,
    largest,
    load,
    store,
    subtract,
    take_next,
    total,
)
from .cpu_team import run
from .philox import uniform

SMALL, SMALL_GREEDY = 1 << 16, 1 << 20  # logits: fewer are done with before a team is awake
WEIGHT_BITS, DIGIT_BITS = 30, 10  # a weight is at most 1, whose bits are 0x3F800000
DIGITS = 1 << DIGIT_BITS
UNIT = np.float32(2.0**40)
NO_FLOAT, MINUS_INFINITY = np.float32(0), np.float32(-np.inf)

SampleJob = job(
    "SampleJob", "logits tokens vocab num_weights temperatures top_ks top_ps draws num_rows"
)


@njit(inline="always")
def mass_of(weight: Any) -> Any:
    return np.int64(weight * UNIT)


@njit(inline="always")
def weigh(logits: Any, at: int, vocab: int, best: Any, temperature: Any, weights: Any) -> None:
    """``exp((logits - best) / temperature)``; the end of the row by way of ``weights``."""
    peak, heat = fill(best), fill(temperature)
    whole = vocab // WIDTH * WIDTH
    for i in range(0, whole, WIDTH):
        store(weights, i, exp(divide(subtract(load(logits, at + i), peak), heat)))
    if whole < vocab:
        store(weights, whole, peak)
        for i in range(whole, vocab):
            weights[i] = logits[at + i]
        store(weights, whole, exp(divide(subtract(load(weights, whole), peak), heat)))


@njit(inline="always")
def cut(weights: Any, vocab: int, counted: bool, goal: int, counts: Any, masses: Any) -> None:
    """Set to zero all weights but the largest whose number (``counted``) or mass reaches ``goal``,
    which is at least 1; of equal ones, the lowest ids are kept. Floats that are not negative are in
    the order of their bits."""
    bits = weights.view(np.int32)
    reached, least, shift = 0, 0, WEIGHT_BITS  # by larger weights; the least that stays >> shift
    while shift > 0:
        for digit in range(DIGITS):
            counts[digit] = masses[digit] = 0
        for i in range(vocab):
            if bits[i] >> shift == least:
                digit = bits[i] >> (shift - DIGIT_BITS) & (DIGITS - 1)
                counts[digit] += 1
                masses[digit] += mass_of(weights[i])
        digit = DIGITS - 1
        while digit >= 0:
            more = counts[digit] if counted else masses[digit]
            if counts[digit] > 0 and reached + more >= goal:
                break
            reached += more
            digit -= 1
        if digit < 0:
            return
        least, shift = least << DIGIT_BITS | digit, shift - DIGIT_BITS
    for i in range(vocab):
        if bits[i] < least or (bits[i] == least and reached >= goal):
            weights[i] = 0
        elif bits[i] == least:
            reached += 1 if counted else mass_of(weights[i])


@njit(inline="always")
def mass_of_all(weights: Any, vocab: int) -> Any:
    mass = 0
    for i in range(vocab):
        mass += mass_of(weights[i])
    return mass


@kernel(SampleJob)
def sample_rows(pointer: Any) -> None:
    """See ``contracts.Sample``."""
    job = carray(pointer, 1)[0]
    vocab, num_rows = job.vocab, job.num_rows
    logits = carray(floats(job.logits), num_rows * vocab)
    tokens, top_ks = carray(ints(job.tokens), num_rows), carray(ints(job.top_ks), num_rows)
    temperatures = carray(floats(job.temperatures), num_rows)
    top_ps = carray(floats(job.top_ps), num_rows)
    draws = carray(doubles(job.draws), num_rows)
    weights = np.empty(job.num_weights, np.float32)
    counts, masses = np.empty(DIGITS, np.int64), np.empty(DIGITS, np.int64)
    whole = vocab // (4 * WIDTH) * 4 * WIDTH
    while True:
        row = take_next(pointer)
        if row >= num_rows:
            return
        at = row * vocab
        none = fill(NO_FLOAT)
        a = b = c = d = fill(MINUS_INFINITY)
        p = q = r = s = none  # NaN once a logit was NaN or Inf
        for i in range(at, at + whole, 4 * WIDTH):
            values = load(logits, i)
            a, p = larger(values, a), fma(values, none, p)
            values = load(logits, i + WIDTH)
            b, q = larger(values, b), fma(values, none, q)
            values = load(logits, i + 2 * WIDTH)
            c, r = larger(values, c), fma(values, none, r)
            values = load(logits, i + 3 * WIDTH)
            d, s = larger(values, d), fma(values, none, s)
        best = largest(larger(larger(a, b), larger(c, d)))
        sound = total(add(add(p, q), add(r, s))) == 0
        for i in range(whole, vocab):
            best, sound = max(best, logits[at + i]), sound and logits[at + i] * NO_FLOAT == 0
        if not sound:
            tokens[row] = -1
            continue
        token = 0
        if temperatures[row] <= 0:
            while logits[at + token] != best:
                token += 1
            tokens[row] = token
            continue
        weigh(logits, at, vocab, best, temperatures[row], weights)
        if 0 < top_ks[row] < vocab:
            cut(weights, vocab, True, np.int64(top_ks[row]), counts, masses)
        mass = mass_of_all(weights, vocab)
        if top_ps[row] < 1:
            goal = max(np.int64(1), np.int64(np.ceil(np.float64(top_ps[row]) * mass)))
            cut(weights, vocab, False, goal, counts, masses)
            mass = mass_of_all(weights, vocab)
        goal, reached = np.int64(draws[row] * mass), mass_of(weights[0])
        while reached <= goal and token < vocab - 1:
            token += 1
            reached += mass_of(weights[token])
        tokens[row] = token


def sample(
    logits: Tensor,
    temperatures: Tensor,
    top_ks: Tensor,
    top_ps: Tensor,
    keys: Tensor,
    positions: Tensor,
) -> Tensor:
    """See ``contracts.Sample``."""
    num_rows, vocab = logits.shape
    tokens = torch.empty(num_rows, dtype=torch.int32)
    is_drawn = bool((temperatures > 0).any())
    draws = uniform(keys.numpy(), positions.numpy()) if is_drawn else np.zeros(num_rows)
    job = SampleJob(
        0, num_rows, logits.data_ptr(), tokens.data_ptr(), vocab,
        vocab + WIDTH if is_drawn else 0, temperatures.data_ptr(), top_ks.data_ptr(),
        top_ps.data_ptr(), draws.ctypes.data, num_rows,
    )  # fmt: skip
    run(sample_rows, job, logits.numel() >= (SMALL if is_drawn else SMALL_GREEDY))
    return tokens
