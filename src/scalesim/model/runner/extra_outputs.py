"""What a batch may ask for beside its next tokens: adjusted logits, log-probabilities, sums of
hidden states. Most steps ask for none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scalesim_kernels import Adjustments, KernelSet
from torch import Tensor

from scalesim.batch import NO_TOKEN, Batch
from scalesim.batch_options import LogitsBatch, LogprobsBatch, Scores
from scalesim.core import Bools, Floats, Int32s, Int64s
from scalesim.model.runner.device_logprobs import SCORED_ROWS

COLUMNS = (
    "min_ps", "repetitions", "presences", "frequencies", "bias_start", "bias_ids", "biases",
    "mask_rows", "masks",
)  # fmt: skip
"""What ``LogitsBatch`` and the kernels' ``Adjustments`` have in common."""


def adjustments(
    batch: Batch, adjust: LogitsBatch, rows: Int64s, counts: npt.NDArray[np.int32]
) -> Adjustments:
    """For the kernels: ``rows`` are the adjusted sequences' rows of the logits."""

    def tensor(values: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values))

    return Adjustments(
        rows=tensor(rows.astype(np.int32)),
        temperatures=tensor(batch.sampling.temperatures[adjust.seqs]),
        slots=tensor(batch.slots[adjust.seqs]),
        counts=torch.from_numpy(counts),
        **{name: tensor(getattr(adjust, name)) for name in COLUMNS},
    )


def log_probs(
    batch: Batch,
    asked: LogprobsBatch,
    rows: Int64s,
    tokens: Int32s,
    logits_of: Callable[[Int64s], Tensor],
    kernels: KernelSet,
) -> Scores:
    """Log-probabilities behind the query tokens whose hidden states are ``rows``. The logits are
    computed again, a few rows at a time: those of a whole prompt would not fit."""
    targets = resolved(batch, asked, tokens)
    parts = []
    for start in range(0, len(rows), SCORED_ROWS):
        part = slice(start, start + SCORED_ROWS)
        chosen = torch.from_numpy(targets[part])
        parts.append(kernels.log_probs(logits_of(rows[part]), chosen, asked.top_k))
    logprobs, ids, top = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return Scores(logprobs, ids, top)


def hidden_sums(spans: Iterable[slice], hidden: Tensor) -> Floats:
    """``[num_spans, hidden]``: final hidden states, summed over each span in fp64."""
    sums = torch.stack([hidden[span].double().sum(0) for span in spans])
    result: Floats = sums.float().numpy()
    return result


def resolved(batch: Batch, asked: LogprobsBatch, tokens: Int32s) -> Int32s:
    """``asked.targets`` with the tokens that the batch's sequences sampled (0 for a bad one)."""
    seqs = np.searchsorted(batch.query_start, asked.tokens, side="right") - 1
    targets = np.where(asked.targets == NO_TOKEN, tokens[seqs], asked.targets)
    result: Int32s = np.maximum(targets, 0).astype(np.int32)
    return result


def not_finite(rows: Tensor) -> Bools:
    """Which rows of ``[n, width]`` hold NaN or Inf: their sum does too, and it is one pass."""
    finite = torch.isfinite(rows.sum(-1, dtype=torch.float32))
    result: Bools = finite.logical_not_().numpy()
    return result
