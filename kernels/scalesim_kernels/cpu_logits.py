"""Logits processing and logprobs of the CPU set, row by row in numpy as in ``cpu_sampling``, so
that a row's bits cannot depend on the other rows.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .contracts import RULED_OUT, Adjustments

RowArray: TypeAlias = npt.NDArray[Any]


def adjust_logits(logits: Tensor, changes: Adjustments) -> Tensor:
    out = logits.index_select(0, changes.rows)
    rows = out.numpy()
    counts, masks = changes.counts.numpy(), changes.masks.numpy()
    starts, slots, mask_rows = (
        column.tolist() for column in (changes.bias_start, changes.slots, changes.mask_rows)
    )
    ids, biases = changes.bias_ids.numpy(), changes.biases.numpy()
    ratios = [
        column.numpy() for column in (changes.repetitions, changes.frequencies, changes.presences)
    ]
    temperatures, min_ps = changes.temperatures.numpy(), changes.min_ps.numpy()
    scratch = np.empty(logits.shape[1], np.float32)
    for i, row in enumerate(rows):
        if starts[i] < starts[i + 1]:
            row[ids[starts[i] : starts[i + 1]]] += biases[starts[i] : starts[i + 1]]
        repetition, frequency, presence = (ratio[i] for ratio in ratios)
        if repetition != 1 or frequency != 0 or presence != 0:
            penalize(row, counts[slots[i]], repetition, frequency, presence)
        np.maximum(row, np.float32(RULED_OUT), out=row)
        if mask_rows[i] >= 0:
            bits = np.unpackbits(masks[mask_rows[i]].view(np.uint8), bitorder="little")
            row[bits[: len(row)] == 0] = RULED_OUT
        if min_ps[i] > 0 and temperatures[i] > 0:
            with np.errstate(over="ignore"):
                np.subtract(row, row.max(), out=scratch)
                np.divide(scratch, temperatures[i], out=scratch)
            row[np.exp(scratch, out=scratch) < min_ps[i]] = RULED_OUT
    return out


def penalize(
    row: RowArray,
    counts: RowArray,
    repetition: np.float32,
    frequency: np.float32,
    presence: np.float32,
) -> None:
    """Steps 2 and 3 of the contract, on the tokens that occur. In place."""
    seen = np.flatnonzero(counts)
    values, times = row[seen], counts[seen] >> 1
    values = np.where(values < 0, values * repetition, values / repetition)
    values -= times.astype(np.float32) * frequency
    row[seen] = values - (times > 0).astype(np.float32) * presence


def log_probs(logits: Tensor, targets: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, picked = logits.numpy(), targets.tolist()
    num_rows, vocab = rows.shape
    chosen = np.full(num_rows, np.nan, np.float32)
    ids = np.zeros((num_rows, top_k), np.int32)
    top = np.full((num_rows, top_k), np.nan, np.float32)
    shifted, weights = np.empty(vocab, np.float64), np.empty(vocab, np.float64)
    for i, row in enumerate(rows):
        if not np.isfinite(row.sum(dtype=np.float64)):
            continue
        np.subtract(row, row.max(), out=shifted, dtype=np.float64)
        log_total = np.log(np.exp(shifted, out=weights).sum())
        ids[i] = likeliest(row, top_k)
        chosen[i] = shifted[picked[i]] - log_total
        top[i] = shifted[ids[i]] - log_total
    return torch.from_numpy(chosen), torch.from_numpy(ids), torch.from_numpy(top)


def likeliest(row: RowArray, top_k: int) -> RowArray:
    """The ids of the ``top_k`` largest, largest first; ties to the lowest id."""
    if top_k == 0:
        return np.zeros(0, np.int64)
    smallest = np.partition(row, -top_k)[-top_k]
    among = np.flatnonzero(row >= smallest)
    order: RowArray = among[np.argsort(-row[among], kind="stable")[:top_k]]
    return order
