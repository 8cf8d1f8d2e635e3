"""What the CPU set does to logits beside sampling, row by row in numpy, as ``cpu_sampling`` does:
a row's bits cannot depend on the others.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Row: TypeAlias = npt.NDArray[Any]


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


def likeliest(row: Row, top_k: int) -> Row:
    """The ids of the ``top_k`` largest, largest first; ties to the lowest id."""
    if top_k == 0:
        return np.zeros(0, np.int64)
    smallest = np.partition(row, -top_k)[-top_k]
    among = np.flatnonzero(row >= smallest)
    order: Row = among[np.argsort(-row[among], kind="stable")[:top_k]]
    return order
