"""The kernels of the CPU set that numba compiles: attention that reads pages where they lie, the
rotary embedding with the KV store, RMSNorm and gated activations; in fp32.

A kernel is a C function of one job, which a team of threads runs together: each thread takes the
next item until there is none. Who computes an item changes nothing: the bits of a row follow from
that row's inputs alone (``cpu_lanes``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit

from .cpu_float8 import load_float8, octets, store_float8
from .cpu_kernel import job, kernel
from .cpu_lanes import (
    WIDTH,
    add,
    divide,
    exp,
    fill,
    floats,
    fma,
    ints,
    lane,
    larger,
    largest,
    load,
    multiply,
    only,
    prefetch,
    store,
    subtract,
    sums,
    take_next,
    tanh,
    total,
)

TILE = 64  # positions of KV between two corrections of the softmax; every block size divides it
TOKENS = 8  # tokens of an item of the KV store
LINE = 16  # elements of a cache line
FEW_ROWS = 16  # so few do not hide how long their KV takes to come
UNROLLED = 8 * WIDTH  # elements of V that are mixed in registers
MINUS_INFINITY = np.float32(-np.inf)
ONE, MINUS_ONE, NO_FLOAT = np.float32(1), np.float32(-1), np.float32(0)
GELU_SCALE, GELU_CUBIC = np.float32(0.7978845608028654), np.float32(0.044715)  # sqrt(2 / pi)


AttentionJob = job(
    "AttentionJob",
    "q q_stride q_size out out_size layer layer_size page_stride table table_size max_blocks "
    "items num_heads num_kv_heads head_dim block_size window most_tokens float8",
    "scale soft_cap",
)
RopeJob = job(
    "RopeJob",
    "qkv qkv_size layer layer_size page_stride table table_size max_blocks rows positions "
    "cos_sin cos_sin_size num_tokens num_heads num_kv_heads head_dim block_size float8 q_weight "
    "k_weight",
    "eps",
)
NormJob = job("NormJob", "x residual weight out num_rows width rows_each", "eps")
GateJob = job("GateJob", "gate_up out num_rows width rows_each gelu")


# -- attention -----------------------------------------------------------------------------------


@njit(inline="always")
def eight_scores(q: Any, q_at: int, layer: Any, k_at: int, dim: int) -> Any:
    """The products of a query with eight keys that follow one another, a lane each."""
    a = b = c = d = e = f = g = h = fill(NO_FLOAT)
    for i in range(0, dim, WIDTH):
        x, y = load(q, q_at + i), k_at + i
        a = fma(x, load(layer, y), a)
        b = fma(x, load(layer, y + dim), b)
        c = fma(x, load(layer, y + 2 * dim), c)
        d = fma(x, load(layer, y + 3 * dim), d)
        e = fma(x, load(layer, y + 4 * dim), e)
        f = fma(x, load(layer, y + 5 * dim), f)
        g = fma(x, load(layer, y + 6 * dim), g)
        h = fma(x, load(layer, y + 7 * dim), h)
    return sums(a, b, c, d, e, f, g, h)


@njit(inline="always")
def mix_wide(
    mixed: Any, m_at: int, weights: Any, w_at: int, layer: Any, values: Any, i: int,
    first: int, end: int, dim: int, block_size: int, faded: Any,
) -> None:  # fmt: skip
    """``mixed = faded * mixed + weights @ V``, of the elements ``i:i + 64`` of each value."""
    a = multiply(faded, load(mixed, m_at))
    b = multiply(faded, load(mixed, m_at + 8))
    c = multiply(faded, load(mixed, m_at + 16))
    d = multiply(faded, load(mixed, m_at + 24))
    e = multiply(faded, load(mixed, m_at + 32))
    f = multiply(faded, load(mixed, m_at + 40))
    g = multiply(faded, load(mixed, m_at + 48))
    h = multiply(faded, load(mixed, m_at + 56))
    position = first
    while position < end:
        block = position // block_size
        stop = min(end, (block + 1) * block_size)
        v_at = values[block] + (position - block * block_size) * dim + i
        for j in range(position, stop):
            w = fill(weights[w_at + j])
            a = fma(w, load(layer, v_at), a)
            b = fma(w, load(layer, v_at + 8), b)
            c = fma(w, load(layer, v_at + 16), c)
            d = fma(w, load(layer, v_at + 24), d)
            e = fma(w, load(layer, v_at + 32), e)
            f = fma(w, load(layer, v_at + 40), f)
            g = fma(w, load(layer, v_at + 48), g)
            h = fma(w, load(layer, v_at + 56), h)
            v_at += dim
        position = stop
    store(mixed, m_at, a)
    store(mixed, m_at + 8, b)
    store(mixed, m_at + 16, c)
    store(mixed, m_at + 24, d)
    store(mixed, m_at + 32, e)
    store(mixed, m_at + 40, f)
    store(mixed, m_at + 48, g)
    store(mixed, m_at + 56, h)


@njit(inline="always")
def mix_eight(
    mixed: Any, m_at: int, weights: Any, w_at: int, layer: Any, values: Any, i: int,
    first: int, end: int, dim: int, block_size: int, faded: Any,
) -> None:  # fmt: skip
    """As ``mix_wide``, of the elements ``i:i + 8``: for the end of other head dimensions."""
    a = multiply(faded, load(mixed, m_at))
    for j in range(first, end):
        block = j // block_size
        v_at = values[block] + (j - block * block_size) * dim + i
        a = fma(fill(weights[w_at + j]), load(layer, v_at), a)
    store(mixed, m_at, a)


@njit(inline="always")
def widen_block(
    codes: Any, c_at: int, floats: Any, f_at: int, size: int, v_of_codes: int, v_of_floats: int
) -> None:
    """K and V of a block, from e4m3."""
    for i in range(0, size, WIDTH):
        store(floats, f_at + i, load_float8(codes, c_at + i))
        store(floats, f_at + v_of_floats + i, load_float8(codes, c_at + v_of_codes + i))


@kernel(AttentionJob)
def attention(pointer: Any) -> None:
    """Causal attention of a few consecutive tokens of one sequence, with the query heads of one KV
    head, an item each.

    Online softmax: after each tile of 64 positions, a row's sums are corrected for its new maximum.
    Tiles begin at multiples of 64 of the absolute position, so a row takes the same steps however
    its tokens were cut into items. A tile in e4m3 is converted once for all rows of the item.
    """
    job = carray(pointer, 1)[0]
    dim, block_size, window = job.head_dim, job.block_size, job.window
    num_kv_heads = job.num_kv_heads
    group = job.num_heads // num_kv_heads
    q = carray(floats(job.q), job.q_size)
    out = carray(floats(job.out), job.out_size)
    layer = carray(floats(job.layer), job.layer_size)
    codes = carray(octets(job.layer), job.layer_size)
    table = carray(ints(job.table), job.table_size)
    items = carray(ints(job.items), (job.num_items // num_kv_heads, 4))
    scale, capped = fill(job.scale), job.soft_cap > 0
    cap, inverse_cap = fill(job.soft_cap), fill(job.scale / job.soft_cap if capped else NO_FLOAT)
    hidden = fill(MINUS_INFINITY)
    most_rows = job.most_tokens * group
    weights = np.empty(most_rows * TILE, np.float32)
    mixed = np.empty(most_rows * dim, np.float32)
    maxima = np.empty(most_rows, np.float32)
    masses = np.empty(most_rows, np.float32)
    fades = np.empty(most_rows, np.float32)
    values = np.empty(TILE // block_size, np.int64)
    v_of_k, v_of_page = TILE * dim, num_kv_heads * block_size * dim
    if job.float8 != 0:
        layer = np.empty(2 * v_of_k, np.float32)
    else:
        v_of_k = v_of_page
    while True:
        index = take_next(pointer)
        if index >= job.num_items:
            return
        head = index % num_kv_heads
        item = items[index // num_kv_heads]
        row, first_token, num_tokens, first_position = item[0], item[1], item[2], item[3]
        num_rows = num_tokens * group
        mixed[: num_rows * dim] = 0
        maxima[:num_rows] = MINUS_INFINITY
        masses[:num_rows] = 0
        last = first_position + num_tokens - 1
        start = 0 if window == 0 else max(0, first_position - window + 1) // TILE * TILE
        for base in range(start, last + 1, TILE):
            for block in range(min(TILE, last + 1 - base + block_size - 1) // block_size):
                page = np.int64(table[row * job.max_blocks + base // block_size + block])
                k_at = page * job.page_stride + head * block_size * dim
                if job.float8 != 0:
                    values[block] = v_of_k + block * block_size * dim
                    widen_block(
                        codes, k_at, layer, values[block] - v_of_k, block_size * dim, v_of_page,
                        v_of_k,
                    )  # fmt: skip
                    continue
                values[block] = k_at + v_of_k
                for line in range(0, block_size * dim if num_rows <= FEW_ROWS else 0, LINE):
                    prefetch(layer, values[block] + line)
            for r in range(num_rows):
                position = first_position + r // group
                end = min(position + 1 - base, TILE)
                first = 0 if window == 0 else max(0, position - window + 1 - base)
                if first >= end:
                    continue
                q_at = (first_token + r // group) * job.q_stride + (head * group + r % group) * dim
                top = hidden
                for j in range(first // WIDTH * WIDTH, end, WIDTH):
                    k_at = values[j // block_size] - v_of_k + j % block_size * dim
                    scores = eight_scores(q, q_at, layer, k_at, dim)
                    if capped:
                        scores = multiply(cap, tanh(multiply(scores, inverse_cap)))
                    else:
                        scores = multiply(scores, scale)
                    scores = only(first - j, end - j, scores, hidden)
                    store(weights, r * TILE + j, scores)
                    top = larger(top, scores)
                maximum = max(maxima[r], largest(top))
                peak, mass = fill(maximum), fill(NO_FLOAT)
                for j in range(first // WIDTH * WIDTH, end, WIDTH):
                    grown = exp(subtract(load(weights, r * TILE + j), peak))
                    store(weights, r * TILE + j, grown)
                    mass = add(mass, grown)
                fade = lane(exp(subtract(fill(maxima[r]), peak)), 0)
                masses[r] = masses[r] * fade + total(mass)
                maxima[r], fades[r] = maximum, fade
            for r in range(num_rows):
                position = first_position + r // group
                end = min(position + 1 - base, TILE)
                first = 0 if window == 0 else max(0, position - window + 1 - base)
                if first >= end:
                    continue
                faded, i = fill(fades[r]), 0
                while i + UNROLLED <= dim:
                    mix_wide(mixed, r * dim + i, weights, r * TILE, layer, values, i,
                             first, end, dim, block_size, faded)  # fmt: skip
                    i += UNROLLED
                while i < dim:
                    mix_eight(mixed, r * dim + i, weights, r * TILE, layer, values, i,
                              first, end, dim, block_size, faded)  # fmt: skip
                    i += WIDTH
        for r in range(num_rows):
            token = first_token + r // group
            at = (token * job.num_heads + head * group + r % group) * dim
            mass = fill(masses[r])
            for i in range(0, dim, WIDTH):
                store(out, at + i, divide(load(mixed, r * dim + i), mass))


# -- rotary embedding and KV store -----------------------------------------------------------------


@njit(inline="always")
def norm_factor(x: Any, at: int, width: int, eps: Any) -> Any:
    """One over the root mean square of ``x[at:at + width]``."""
    squares = fill(NO_FLOAT)
    for i in range(0, width, WIDTH):
        value = load(x, at + i)
        squares = fma(value, value, squares)
    return fill(ONE / np.sqrt(total(squares) / np.float32(width) + eps))


@kernel(RopeJob)
def rope_and_store(pointer: Any) -> None:
    """Normalize and rotate Q and K of a token, in place, and store K and V; an item a token."""
    job = carray(pointer, 1)[0]
    dim, block_size = job.head_dim, job.block_size
    half, num_kv_heads = dim // 2, job.num_kv_heads
    qkv = carray(floats(job.qkv), job.qkv_size)
    layer = carray(floats(job.layer), job.layer_size)
    codes = carray(octets(job.layer), job.layer_size)
    table = carray(ints(job.table), job.table_size)
    rows = carray(ints(job.rows), job.num_tokens)
    positions = carray(ints(job.positions), job.num_tokens)
    cos_sin = carray(floats(job.cos_sin), job.cos_sin_size)
    q_weight, k_weight = carray(floats(job.q_weight), dim), carray(floats(job.k_weight), dim)
    num_qk = job.num_heads + num_kv_heads
    width = (num_qk + num_kv_heads) * dim
    while True:
        first_token = take_next(pointer) * TOKENS
        if first_token >= job.num_tokens:
            return
        for token in range(first_token, min(first_token + TOKENS, job.num_tokens)):
            angle = np.int64(positions[token]) * dim
            for head in range(num_qk):
                at = token * width + head * dim
                if job.q_weight != 0:
                    factor = norm_factor(qkv, at, dim, job.eps)
                    weight = q_weight if head < job.num_heads else k_weight
                    for i in range(0, dim, WIDTH):
                        value = multiply(multiply(load(qkv, at + i), factor), load(weight, i))
                        store(qkv, at + i, value)
                for i in range(0, half, WIDTH):
                    cos, sin = load(cos_sin, angle + i), load(cos_sin, angle + half + i)
                    low, high = load(qkv, at + i), load(qkv, at + half + i)
                    store(qkv, at + i, subtract(multiply(low, cos), multiply(high, sin)))
                    store(qkv, at + half + i, add(multiply(high, cos), multiply(low, sin)))
            if rows[token] == 0:
                continue
            block = np.int64(rows[token]) * job.max_blocks + positions[token] // block_size
            slot = np.int64(table[block]) * job.page_stride + positions[token] % block_size * dim
            kv = token * width + job.num_heads * dim
            for head in range(2 * num_kv_heads):
                at = slot + head * block_size * dim
                for i in range(0, dim, WIDTH):
                    element = load(qkv, kv + head * dim + i)
                    if job.float8 != 0:
                        store_float8(codes, at + i, element)
                    else:
                        store(layer, at + i, element)


# -- work on rows ----------------------------------------------------------------------------------


@kernel(NormJob)
def rms_norm(pointer: Any) -> None:
    """``residual += x``, if there is a residual; ``out`` is that normalized."""
    job = carray(pointer, 1)[0]
    width, size = job.width, job.num_rows * job.width
    x, out = carray(floats(job.x), size), carray(floats(job.out), size)
    residual, weight = carray(floats(job.residual), size), carray(floats(job.weight), width)
    while True:
        first = take_next(pointer) * job.rows_each
        if first >= job.num_rows:
            return
        for row in range(first, min(first + job.rows_each, job.num_rows)):
            at = row * width
            source = x
            if job.residual != 0:
                source = residual
                for i in range(at, at + width, WIDTH):
                    store(residual, i, add(load(residual, i), load(x, i)))
            factor = norm_factor(source, at, width, job.eps)
            for i in range(0, width, WIDTH):
                normed = multiply(load(source, at + i), factor)
                store(out, at + i, multiply(normed, load(weight, i)))


@kernel(GateJob)
def gate(pointer: Any) -> None:
    """``silu(gate) * up`` or ``gelu(gate) * up`` of ``[gate, up]`` rows."""
    job = carray(pointer, 1)[0]
    width = job.width
    gate_up = carray(floats(job.gate_up), 2 * job.num_rows * width)
    out = carray(floats(job.out), job.num_rows * width)
    one, minus_one = fill(ONE), fill(MINUS_ONE)
    scale, cubic = fill(GELU_SCALE), fill(GELU_CUBIC)
    half = fill(np.float32(0.5))
    while True:
        first = take_next(pointer) * job.rows_each
        if first >= job.num_rows:
            return
        for row in range(first, min(first + job.rows_each, job.num_rows)):
            at = row * width
            for i in range(0, width, WIDTH):
                x, up = load(gate_up, 2 * at + i), load(gate_up, 2 * at + width + i)
                if job.gelu != 0:
                    inner = fma(multiply(cubic, multiply(x, x)), x, x)
                    turned = add(one, tanh(multiply(scale, inner)))
                    active = multiply(multiply(half, x), turned)
                else:
                    active = divide(x, add(one, exp(multiply(minus_one, x))))
                store(out, at + i, multiply(active, up))
