"""Sampling on the device: greedy, temperature, top-k and top-p, without a sort and without a host
sync.

A token's mass is its weight ``exp((logit - max) / T)`` in units of 2**-40, as an integer. Sums of
integers do not depend on their order, so cuts, cumulative sums and the draw are exact and
repeatable. The reference sums in fp64; results differ from it only where a cut or the draw falls
within 2**-40 * vocab of a token's edge, or within the last bits of ``exp``.

Both cuts are the same search: the largest weight such that the tokens of at least this weight reach
a goal, in number (top-k) or mass (top-p). The search goes digit by digit over the bits of the
weights; bits order like the weights, since no weight is negative. It goes over a list: one pass
over the vocabulary writes down, in vocabulary order, the tokens whose weight is near the largest,
and where these reach the goal, no other token can be kept. Where they do not, or are too many, the
list is the vocabulary. Reference: ``reference.sample``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, capability, next_power_of_2

SEARCH, DIGIT = 512, 3  # tokens at a time in a search; bits of a weight that a pass finds
ROOM = 8192  # tokens of a row's list
COLUMNS = ["temperatures", "top_ks", "top_ps", "keys", "positions", "tokens"]
UNIT = tl.constexpr(2.0**40)  # vocabularies up to 2**22 sum to less than 2**63
NEAR = tl.constexpr(0x37800000)  # the bits of 2**-16: what is listed weighs at least that


def sample_launch() -> Launch:
    """Tiles as large as registers take without spills: small ones on AMD's GPUs."""
    if capability():
        return Launch(tile=1024, num_warps=8, num_stages=3)
    return Launch(tile=256, num_warps=4)


@triton.jit
def weighed(logit, inside, largest, temperature):
    """(weights' bits, masses) of logits; -1 and 0 where not ``inside``."""
    weight = tl.exp(tl.div_rn(logit - largest, temperature))
    weight = tl.where(inside, weight, 0.0)
    bits = tl.where(inside, weight.to(tl.int32, bitcast=True), -1)
    return bits, (weight * UNIT).to(tl.int64)


@triton.jit
def block_of(
    logits, near_logits, listed, start, size, largest, temperature, BLOCK: tl.constexpr
):  # fmt: skip
    """(places, weights' bits, masses) of ``BLOCK`` tokens from ``start``: of the list, or of the
    vocabulary."""
    place = start + tl.arange(0, BLOCK)
    inside = place < size
    which = listed + 0 * place  # as a row: Triton 3.9's interpreter makes no mask of a scalar
    whole = tl.load(logits + place, mask=inside & (which == 0), other=0.0)
    near = tl.load(near_logits + place, mask=inside & (which != 0), other=0.0)
    bits, mass = weighed(whole + near, inside, largest, temperature)
    return place, bits, mass


@triton.jit
def survey(
    logits, largest, temperature, near_logits, near_ids, wanted,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr, ROOM: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """(mass of all tokens, number and mass of those near the largest). Where ``wanted``, lists the
    logits and ids of the first ``ROOM`` of these."""
    mass = tl.zeros([BLOCK], tl.int64)
    near_mass = tl.zeros([BLOCK], tl.int64)
    count = tl.max(tl.zeros([1], tl.int32), 0)
    for start in tl.range(0, VOCAB, BLOCK, num_stages=STAGES):
        token = start + tl.arange(0, BLOCK)
        logit = tl.load(logits + token, mask=token < VOCAB, other=0.0)
        bits, own = weighed(logit, token < VOCAB, largest, temperature)
        near = (bits >= NEAR).to(tl.int32)
        place = count + tl.cumsum(near, 0) - near
        # as a row: Triton 3.9's interpreter makes no mask of a scalar
        listed = (near != 0) & (place < ROOM) & (wanted + 0 * place != 0)
        tl.store(near_logits + place, logit, mask=listed)
        tl.store(near_ids + place, token, mask=listed)
        count += tl.sum(near, 0)
        mass += own
        near_mass += tl.where(near != 0, own, 0)
    return tl.sum(mass, 0), count, tl.sum(near_mass, 0)


@triton.jit
def mass_above(
    logits, near_logits, listed, size, largest, temperature, bits, BLOCK: tl.constexpr
):  # fmt: skip
    """(number, mass) of the tokens whose weight has more than ``bits``; (number, mass) of ties."""
    count = tl.zeros([BLOCK], tl.int32)
    mass = tl.zeros([BLOCK], tl.int64)
    ties = tl.zeros([BLOCK], tl.int32)
    tie_mass = tl.zeros([BLOCK], tl.int64)
    for start in tl.range(0, size, BLOCK):
        _, own, own_mass = block_of(
            logits, near_logits, listed, start, size, largest, temperature, BLOCK
        )
        count += tl.where(own > bits, 1, 0)
        mass += tl.where(own > bits, own_mass, 0)
        ties += tl.where(own == bits, 1, 0)
        tie_mass = tl.maximum(tie_mass, tl.where(own == bits, own_mass, 0))
    return tl.sum(count, 0), tl.sum(mass, 0), tl.sum(ties, 0), tl.max(tie_mass, 0)


@triton.jit
def largest_cut(
    logits, near_logits, listed, size, largest, temperature, goal, floor, by_mass,
    BLOCK: tl.constexpr, DIGIT: tl.constexpr,
):  # fmt: skip
    """The largest bits, at least ``floor``, such that what has at least these reaches ``goal``.

    By number, or ``by_mass``. Tries all 2**DIGIT values of the next digit in one pass.
    """
    digits = tl.arange(0, 1 << DIGIT)
    found = tl.zeros([1], tl.int32)
    for step in range(0, 30, DIGIT):  # weights are at most 1.0, whose bits are below 2**30
        shift = 30 - DIGIT - step
        tried = found + (digits << shift)
        reached = tl.zeros([1 << DIGIT], tl.int64)
        for start in tl.range(0, size, BLOCK):
            _, bits, mass = block_of(
                logits, near_logits, listed, start, size, largest, temperature, BLOCK
            )
            value = tl.where(by_mass, mass, 1)
            at_least = bits[None, :] >= tried[:, None]
            reached += tl.sum(tl.where(at_least, value[None, :], 0), 1)
        passes = (reached >= goal) | (tried <= floor)
        found += (tl.sum(passes.to(tl.int32), 0) - 1) << shift
    return tl.maximum(tl.max(found, 0), floor)


@triton.jit
def best_token(logits, VOCAB: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """(largest logit, its lowest id, whether all are finite)."""
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    where = tl.zeros([BLOCK], tl.int32)
    odd = tl.zeros([BLOCK], tl.int32)
    for start in tl.range(0, VOCAB, BLOCK, num_stages=STAGES):
        ids = start + tl.arange(0, BLOCK)
        inside = ids < VOCAB
        logit = tl.load(logits + ids, mask=inside, other=0.0)
        finite = tl.abs(logit) <= 3.4028234663852886e38  # false for NaN
        odd += tl.where(finite, 0, 1)
        better = inside & (logit > best)
        best = tl.where(better, logit, best)
        where = tl.where(better, ids, where)
    largest = tl.max(best, 0)
    where = tl.where(best == largest, where, VOCAB)
    return largest, tl.min(where, 0), tl.sum(odd, 0) == 0


@triton.jit
def draw24(key, position):
    """The top 24 bits of word 0 of Philox4x32-10, as int64."""
    counter = tl.full([1], 0, tl.uint32)
    word, _, _, _ = tl.philox(key, counter + position.to(tl.uint32), counter, counter, counter)
    return tl.max((word >> 8).to(tl.int64), 0)


@triton.jit
def times_draw(mass, u24):
    """``floor(mass * u24 / 2**24)``; exact: neither product leaves 63 bits."""
    return (mass >> 24) * u24 + (((mass & 0xFFFFFF) * u24) >> 24)


@triton.jit
def ties_needed(mass, tie_mass):
    """``ceil(mass / tie_mass)`` up to 2**22, without a division of 64-bit integers."""
    guess = (mass.to(tl.float32) / tl.maximum(tie_mass, 1).to(tl.float32)).to(tl.int32)
    guess = tl.maximum(guess - 1, 0)  # the quotient may be off by one, either way
    guess += (guess * tie_mass < mass).to(tl.int32)
    guess += (guess * tie_mass < mass).to(tl.int32)
    return guess + (guess * tie_mass < mass).to(tl.int32)


@triton.jit
def share_of(total, top_p):
    """``ceil(top_p * total)``, at least 1."""
    share = top_p.to(tl.float64) * total.to(tl.float64)
    goal = share.to(tl.int64)
    return tl.maximum(goal + (goal.to(tl.float64) < share).to(tl.int64), 1)


@triton.jit
def first_beyond(
    logits, near_logits, listed, size, largest, temperature, cut, ties, threshold,
    BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The place of the first kept token at which the cumulative kept mass exceeds ``threshold``."""
    result = tl.full([BLOCK], 1 << 30, tl.int32)
    mass_before = tl.max(tl.zeros([1], tl.int64), 0)
    ties_before = tl.max(tl.zeros([1], tl.int32), 0)
    for start in tl.range(0, size, BLOCK, num_stages=STAGES):
        place, bits, mass = block_of(
            logits, near_logits, listed, start, size, largest, temperature, BLOCK
        )
        tie = (bits == cut).to(tl.int32)
        rank = ties_before + tl.cumsum(tie, 0)
        kept = (bits > cut) | ((tie != 0) & (rank <= ties))
        mass = tl.where(kept, mass, 0)
        beyond = kept & (mass_before + tl.cumsum(mass, 0) > threshold)
        result = tl.minimum(result, tl.where(beyond, place, 1 << 30))
        mass_before += tl.sum(mass, 0)
        ties_before += tl.sum(tie, 0)
    return tl.min(result, 0)


@triton.jit(do_not_specialize_on_alignment=COLUMNS)
def sample_kernel(
    logits,  # [n, VOCAB] fp32, C-contiguous
    temperatures, top_ks, top_ps,  # [n] fp32, int32, fp32
    keys, positions,  # [n] int64, int32
    near_logits, near_ids,  # [n, ROOM] fp32, int32: scratch
    tokens,  # [n] int32, the result
    VOCAB: tl.constexpr, BLOCK: tl.constexpr, SEARCH: tl.constexpr, DIGIT: tl.constexpr,
    ROOM: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid ``(n,)``: a row each. A greedy row makes one pass over its logits, others two, and one
    more where the list is the vocabulary."""
    row = tl.program_id(0)
    logits += row.to(tl.int64) * VOCAB
    near_logits += row.to(tl.int64) * ROOM
    near_ids += row.to(tl.int64) * ROOM
    temperature = tl.load(temperatures + row)
    largest, token, finite = best_token(logits, VOCAB, BLOCK, STAGES)
    if finite & (temperature > 0):
        top_k, top_p = tl.load(top_ks + row), tl.load(top_ps + row)
        by_number, by_mass = (top_k > 0) & (top_k < VOCAB), top_p < 1
        total, count, near_mass = survey(
            logits, largest, temperature, near_logits, near_ids, by_number | by_mass, VOCAB, BLOCK,
            ROOM, STAGES,
        )  # fmt: skip
        goal = share_of(total, top_p)
        enough = tl.where(by_number, count >= top_k, by_mass & (near_mass >= goal))
        listed = (enough & (count <= ROOM)).to(tl.int32)
        tl.debug_barrier()  # the list is read by other threads than wrote it
        size = tl.where(listed != 0, count, VOCAB)
        cut, ties = count * 0, count * 0
        if by_number:
            cut = largest_cut(
                logits, near_logits, listed, size, largest, temperature, top_k, 0, False, SEARCH,
                DIGIT,
            )  # fmt: skip
            above, mass, _, tie_mass = mass_above(
                logits, near_logits, listed, size, largest, temperature, cut, SEARCH
            )
            ties = top_k - above
            total = mass + ties * tie_mass
            goal = share_of(total, top_p)
        if by_mass:
            nucleus = largest_cut(
                logits, near_logits, listed, size, largest, temperature, goal, cut, True, SEARCH,
                DIGIT,
            )  # fmt: skip
            above, mass, num_ties, tie_mass = mass_above(
                logits, near_logits, listed, size, largest, temperature, nucleus, SEARCH
            )
            if nucleus > cut:
                ties = num_ties
            ties = tl.minimum(ties, ties_needed(goal - mass, tie_mass))
            cut = nucleus
            total = mass + ties * tie_mass
        u24 = draw24(tl.load(keys + row), tl.load(positions + row))
        threshold = times_draw(total, u24)
        token = first_beyond(
            logits, near_logits, listed, size, largest, temperature, cut, ties, threshold, BLOCK,
            STAGES,
        )  # fmt: skip
        if listed != 0:
            token = tl.load(near_ids + token)
    tl.store(tokens + row, tl.where(finite, token, -1))


def sample(
    logits: Tensor, temperatures: Tensor, top_ks: Tensor, top_ps: Tensor, keys: Tensor,
    positions: Tensor,
) -> Tensor:  # fmt: skip
    """See ``contracts.Sample``."""
    num_rows, vocab = logits.shape
    tokens = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    near_logits = torch.empty((num_rows, ROOM), device=logits.device)
    near_ids = torch.empty((num_rows, ROOM), dtype=torch.int32, device=logits.device)
    launch = sample_launch()
    block = min(launch.tile, next_power_of_2(max(vocab, 16)))
    sample_kernel[(num_rows,)](
        logits, temperatures, top_ks, top_ps, keys, positions, near_logits, near_ids, tokens,
        vocab, block, min(SEARCH, block), DIGIT, ROOM, launch.num_stages, **launch.options(),
    )  # fmt: skip
    return tokens
