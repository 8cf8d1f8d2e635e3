"""Logits processing in Triton: penalties, biases and masks before sampling, and logprobs.

One program computes one row, so that a row's bits cannot depend on the other rows. References:
``reference.adjust_logits`` and ``reference.log_probs``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .contracts import RULED_OUT, Adjustments
from .launch import Launch, next_power_of_2
from .sampling import best_token

LOGITS = Launch(tile=4096, num_warps=16, num_stages=3)
LOWEST = tl.constexpr(RULED_OUT)
# Fields of one packed array: where each starts must not decide what is compiled.
COLUMNS = [
    "rows", "temperatures", "min_ps", "repetitions", "presences", "frequencies", "slots",
    "bias_start", "bias_ids", "biases", "mask_rows", "masks",
]  # fmt: skip


@triton.jit
def adjusted_block(
    logits, counts, ids, inside, repetition, frequency, presence,
    bias_ids, biases, first_bias, last_bias, mask, masked,
):  # fmt: skip
    """The logits of tokens ``ids`` after all but min_p."""
    logit = tl.load(logits + ids, mask=inside, other=0.0)
    for at in range(first_bias, last_bias):
        bias = tl.load(biases + at)
        logit = tl.where(ids == tl.load(bias_ids + at), logit + bias, logit)
    if (repetition != 1.0) | (frequency != 0.0) | (presence != 0.0):
        count = tl.load(counts + ids, mask=inside, other=0)
        times = (count >> 1).to(tl.float32)
        penalized = tl.where(logit < 0, logit * repetition, tl.div_rn(logit, repetition))
        logit = tl.where(count > 0, penalized, logit)
        logit = logit - times * frequency
        logit = logit - tl.where(times > 0, presence, 0.0)
    logit = tl.where(logit < LOWEST, LOWEST, logit)
    if masked:
        word = tl.load(mask + ids // 32, mask=inside, other=0)
        logit = tl.where(((word >> (ids % 32)) & 1) != 0, logit, LOWEST)
    return logit


@triton.jit(do_not_specialize_on_alignment=COLUMNS)
def adjust_kernel(
    logits,  # [n, VOCAB] fp32, C-contiguous
    out,  # [m, VOCAB] fp32
    rows, temperatures, min_ps, repetitions, presences, frequencies,  # [m] int32, fp32 ...
    slots, counts,  # [m] int32, [num_slots, VOCAB] int32
    bias_start, bias_ids, biases,  # [m + 1] int32, [num_biases] int32, fp32
    mask_rows, masks,  # [m] int32, [num_masks, WORDS] int32
    VOCAB: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid ``(m,)``: a row each."""
    at = tl.program_id(0)
    out += at.to(tl.int64) * VOCAB
    logits += tl.load(rows + at).to(tl.int64) * VOCAB
    counts += tl.load(slots + at).to(tl.int64) * VOCAB
    mask_row = tl.load(mask_rows + at)
    masks += tl.maximum(mask_row, 0).to(tl.int64) * WORDS
    repetition, frequency = tl.load(repetitions + at), tl.load(frequencies + at)
    presence = tl.load(presences + at)
    first_bias, last_bias = tl.load(bias_start + at), tl.load(bias_start + at + 1)
    temperature, min_p = tl.load(temperatures + at), tl.load(min_ps + at)
    best = tl.full([BLOCK], LOWEST, tl.float32)
    for start in range(0, VOCAB, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        inside = ids < VOCAB
        logit = adjusted_block(
            logits, counts, ids, inside, repetition, frequency, presence,
            bias_ids, biases, first_bias, last_bias, masks, mask_row >= 0,
        )  # fmt: skip
        tl.store(out + ids, logit, mask=inside)
        best = tl.maximum(best, tl.where(inside, logit, LOWEST))
    if (min_p > 0) & (temperature > 0):
        largest = tl.max(best, 0)
        for start in range(0, VOCAB, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            inside = ids < VOCAB
            # Made again rather than read back, which would need a barrier.
            logit = adjusted_block(
                logits, counts, ids, inside, repetition, frequency, presence,
                bias_ids, biases, first_bias, last_bias, masks, mask_row >= 0,
            )  # fmt: skip
            weight = tl.exp(tl.div_rn(logit - largest, temperature))
            tl.store(out + ids, tl.where(weight < min_p, LOWEST, logit), mask=inside)


def adjust_logits(logits: Tensor, changes: Adjustments) -> Tensor:
    num_rows, vocab = len(changes.rows), logits.shape[1]
    out = torch.empty((num_rows, vocab), device=logits.device)
    if num_rows:
        block = min(LOGITS.tile, next_power_of_2(max(vocab, 16)))
        adjust_kernel[(num_rows,)](
            logits, out, changes.rows, changes.temperatures, changes.min_ps, changes.repetitions,
            changes.presences, changes.frequencies, changes.slots, changes.counts,
            changes.bias_start, changes.bias_ids, changes.biases, changes.mask_rows, changes.masks,
            vocab, -(-vocab // 32), block, **LOGITS.options(),
        )  # fmt: skip
    return out


@triton.jit
def next_best(logits, value, token, VOCAB: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """(logit, lowest id) of what comes after ``token`` of logit ``value``, in descending order."""
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    where = tl.zeros([BLOCK], tl.int32)
    for start in tl.range(0, VOCAB, BLOCK, num_stages=STAGES):
        ids = start + tl.arange(0, BLOCK)
        logit = tl.load(logits + ids, mask=ids < VOCAB, other=float("-inf"))
        after = (logit < value) | ((logit == value) & (ids > token))
        better = after & (logit > best)
        best = tl.where(better, logit, best)
        where = tl.where(better, ids, where)
    largest = tl.max(best, 0)
    return largest, tl.min(tl.where(best == largest, where, VOCAB - 1), 0)


@triton.jit(do_not_specialize=["top_k"], do_not_specialize_on_alignment=["targets"])
def log_probs_kernel(
    logits,  # [n, VOCAB] fp32, C-contiguous
    targets,  # [n] int32
    chosen,  # [n] fp32, the targets' log-probabilities
    top_ids, tops,  # [n, top_k] int32, fp32
    top_k,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid ``(n,)``: a row each. A pass for the largest, one for the sum, one a likeliest token."""
    row = tl.program_id(0)
    logits += row.to(tl.int64) * VOCAB
    largest, token, _ = best_token(logits, VOCAB, BLOCK, STAGES)
    total = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, VOCAB, BLOCK, num_stages=STAGES):
        ids = start + tl.arange(0, BLOCK)
        logit = tl.load(logits + ids, mask=ids < VOCAB, other=float("-inf"))
        total += tl.exp(logit - largest)
    log_total = tl.log(tl.sum(total, 0))
    tl.store(chosen + row, tl.load(logits + tl.load(targets + row)) - largest - log_total)
    value = largest
    for place in range(top_k):
        tl.store(top_ids + row * top_k + place, token)
        tl.store(tops + row * top_k + place, value - largest - log_total)
        value, token = next_best(logits, value, token, VOCAB, BLOCK, STAGES)


def log_probs(logits: Tensor, targets: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    num_rows, vocab = logits.shape
    chosen = torch.empty(num_rows, device=logits.device)
    ids = torch.empty((num_rows, top_k), dtype=torch.int32, device=logits.device)
    top = torch.empty((num_rows, top_k), device=logits.device)
    if num_rows:
        block = min(LOGITS.tile, next_power_of_2(max(vocab, 16)))
        log_probs_kernel[(num_rows,)](
            logits,
            targets,
            chosen,
            ids,
            top,
            top_k,
            vocab,
            block,
            LOGITS.num_stages,
            **LOGITS.options(),
        )
    return chosen, ids, top
