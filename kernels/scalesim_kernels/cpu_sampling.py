"""Sampling of the CPU set: row by row in numpy, so that a row's token does not depend on the other
rows.

Every row that is drawn uses the same scratch arrays: the same length, alignment and code path.
(torch's vectorized ``exp`` treats the last elements of a range differently, and its range would be
the whole batch.)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .cpu_logits import RowArray
from .philox import uniform


def sample(
    logits: Tensor,
    temperatures: Tensor,
    top_ks: Tensor,
    top_ps: Tensor,
    keys: Tensor,
    positions: Tensor,
) -> Tensor:
    """See ``contracts.Sample``."""
    rows = logits.numpy()
    num_rows, vocab = rows.shape
    best = rows.argmax(axis=1) if num_rows else np.zeros(0, np.int64)
    tokens = best.astype(np.int32)
    finite = np.isfinite(rows.sum(axis=1, dtype=np.float64))
    tokens[~finite] = -1
    drawn = np.flatnonzero(finite & (temperatures.numpy() > 0)).tolist()
    if not drawn:
        return torch.from_numpy(tokens)
    draws = uniform(keys.numpy(), positions.numpy()).tolist()
    temperature, top_k, top_p = temperatures.tolist(), top_ks.tolist(), top_ps.tolist()
    weights, mass = np.empty(vocab, np.float32), np.empty(vocab, np.float64)
    for i in drawn:
        np.subtract(rows[i], rows[i, best[i]], out=weights)
        with np.errstate(over="ignore"):
            np.divide(weights, np.float32(temperature[i]), out=weights)
        np.exp(weights, out=weights)
        if top_k[i] > 0 or top_p[i] < 1:
            cut(weights, top_k[i], top_p[i])
        np.cumsum(weights, dtype=np.float64, out=mass)
        tokens[i] = mass.searchsorted(draws[i] * mass[-1], side="right")
    return torch.from_numpy(tokens)


def cut(weights: RowArray, top_k: int, top_p: float) -> None:
    """Zero the weights (``[vocab]`` fp32) that ``top_k``, then ``top_p``, drop. In place."""
    if 0 < top_k < len(weights):
        smallest = np.partition(weights, -top_k)[-top_k]
        above = int(np.count_nonzero(weights > smallest))
        ties = np.flatnonzero(weights == smallest)
        weights[weights < smallest] = 0
        weights[ties[top_k - above :]] = 0
    if top_p < 1:
        order = np.argsort(-weights, kind="stable")
        mass = np.cumsum(weights[order], dtype=np.float64)
        num_kept = int(mass.searchsorted(top_p * mass[-1], side="left")) + 1
        weights[order[num_kept:]] = 0
