"""What is done to logits beside sampling, in Triton: log-probabilities.

One program a row, so that a row's bits cannot depend on the others. Reference:
``reference.log_probs``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, next_power_of_2
from .sampling import best_token

LOGITS = Launch(tile=512, num_warps=4)


@triton.jit
def next_best(logits, value, token, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """(logit, lowest id) of what comes after ``token`` of logit ``value``, in descending order."""
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    where = tl.zeros([BLOCK], tl.int32)
    for start in range(0, VOCAB, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        logit = tl.load(logits + ids, mask=ids < VOCAB, other=float("-inf"))
        after = (logit < value) | ((logit == value) & (ids > token))
        better = after & (logit > best)
        best = tl.where(better, logit, best)
        where = tl.where(better, ids, where)
    largest = tl.max(best, 0)
    return largest, tl.min(tl.where(best == largest, where, VOCAB - 1), 0)


@triton.jit(do_not_specialize=["top_k"])
def log_probs_kernel(
    logits,  # [n, VOCAB] fp32, C-contiguous
    targets,  # [n] int32
    chosen,  # [n] fp32, the targets' log-probabilities
    top_ids, tops,  # [n, top_k] int32, fp32
    top_k,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid ``(n,)``: a row each. A pass for the largest, one for the sum, one a likeliest token."""
    row = tl.program_id(0)
    logits += row.to(tl.int64) * VOCAB
    largest, token, _ = best_token(logits, VOCAB, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, VOCAB, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        logit = tl.load(logits + ids, mask=ids < VOCAB, other=float("-inf"))
        total += tl.exp(logit - largest)
    log_total = tl.log(tl.sum(total, 0))
    tl.store(chosen + row, tl.load(logits + tl.load(targets + row)) - largest - log_total)
    value = largest
    for place in range(top_k):
        tl.store(top_ids + row * top_k + place, token)
        tl.store(tops + row * top_k + place, value - largest - log_total)
        value, token = next_best(logits, value, token, VOCAB, BLOCK)


def log_probs(logits: Tensor, targets: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    num_rows, vocab = logits.shape
    chosen = torch.empty(num_rows, device=logits.device)
    ids = torch.empty((num_rows, top_k), dtype=torch.int32, device=logits.device)
    top = torch.empty((num_rows, top_k), device=logits.device)
    if num_rows:
        block = min(LOGITS.tile, next_power_of_2(max(vocab, 16)))
        log_probs_kernel[(num_rows,)](
            logits, targets, chosen, ids, top, top_k, vocab, block, **LOGITS.options()
        )
    return chosen, ids, top
