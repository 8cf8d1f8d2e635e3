"""Attention that reads pages where they lie, compiled by numba; in fp32. See ``cpu_compiled``.

A row is a query head of a token. Many rows are computed with a row in each lane, a few with a
position in each; both add the products and the weights of a row up in the same order. So a row's
bits follow from its own query and from the KV before it: however a prefill is cut, whoever else is
in the batch, and whatever the width of the processor's registers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit

from .cpu_float8 import load_float8
from .cpu_kernel import job, kernel
from .cpu_lanes import (
    WIDE,
    WIDTH,
    add,
    divide,
    exp,
    fill,
    fill_wide,
    floats,
    fma,
    ints,
    lane,
    larger,
    largest,
    load,
    load_wide,
    multiply,
    octets,
    only,
    prefetch,
    spread,
    store,
    subtract,
    sums,
    take_next,
    tanh,
    total,
    within,
)
from .cpu_products import row_products

TILE = 64  # positions of KV between two corrections of the softmax
KEYS = 2  # whose products with many rows fill the registers
ROWS = 4  # that mix values together
LINE = 16  # elements of a cache line
FEW_ROWS = 16  # so few do not hide how long their KV takes to come
MINUS_INFINITY, LEAST = np.float32(-np.inf), np.float32(-3e38)
ONE, NO_FLOAT = np.float32(1), np.float32(0)

AttentionJob = job(
    "AttentionJob",
    "q q_stride q_size out out_size layer layer_size page_stride table table_size max_blocks "
    "items num_heads num_kv_heads head_dim block_size window most_tokens float8",
    "scale soft_cap",
)


products_of_rows = row_products(KEYS)


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


@njit(forceinline=True)
def mix_row(
    mixed: Any, m_at: int, faded: Any, weights: Any, w_at: int, w_step: int, layer: Any,
    values: Any, first: int, end: int, dim: int, part_size: int,
) -> None:  # fmt: skip
    """``mixed = faded * mixed + weights @ V``, of one row, over the positions ``first:end`` of a
    tile, whose weights are ``w_step`` apart."""
    i = 0
    while i + 8 * WIDTH <= dim:
        m = m_at + i
        a = multiply(faded, load(mixed, m))
        b = multiply(faded, load(mixed, m + 8))
        c = multiply(faded, load(mixed, m + 16))
        d = multiply(faded, load(mixed, m + 24))
        e = multiply(faded, load(mixed, m + 32))
        f = multiply(faded, load(mixed, m + 40))
        g = multiply(faded, load(mixed, m + 48))
        h = multiply(faded, load(mixed, m + 56))
        position = first
        while position < end:
            part = position // part_size
            stop = min(end, (part + 1) * part_size)
            v_at = values[part] + (position - part * part_size) * dim + i
            for j in range(position, stop):
                w = fill(weights[w_at + j * w_step])
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
        store(mixed, m, a)
        store(mixed, m + 8, b)
        store(mixed, m + 16, c)
        store(mixed, m + 24, d)
        store(mixed, m + 32, e)
        store(mixed, m + 40, f)
        store(mixed, m + 48, g)
        store(mixed, m + 56, h)
        i += 8 * WIDTH
    while i < dim:  # the end of other head dimensions
        m = m_at + i
        a, b = multiply(faded, load(mixed, m)), multiply(faded, load(mixed, m + WIDTH))
        position = first
        while position < end:
            part = position // part_size
            stop = min(end, (part + 1) * part_size)
            v_at = values[part] + (position - part * part_size) * dim + i
            for j in range(position, stop):
                w = fill(weights[w_at + j * w_step])
                a, b = fma(w, load(layer, v_at), a), fma(w, load(layer, v_at + WIDTH), b)
                v_at += dim
            position = stop
        store(mixed, m, a)
        store(mixed, m + WIDTH, b)
        i += 2 * WIDTH


@njit(forceinline=True)
def mix_four(
    mixed: Any, m_at: int, fades: Any, r: int, weights: Any, w_at: int, w_step: int, layer: Any,
    values: Any, first: int, end: int, dim: int, part_size: int,
) -> None:  # fmt: skip
    """As ``mix_row``, of four rows side by side: what is loaded serves four times, or twice."""
    for i in range(0, dim - WIDE, 2 * WIDE):
        m = m_at + i
        fade = spread(fades, r)
        a = multiply(fade, load_wide(mixed, m))
        b = multiply(fade, load_wide(mixed, m + WIDE))
        fade = spread(fades, r + 1)
        c = multiply(fade, load_wide(mixed, m + dim))
        d = multiply(fade, load_wide(mixed, m + dim + WIDE))
        fade = spread(fades, r + 2)
        e = multiply(fade, load_wide(mixed, m + 2 * dim))
        f = multiply(fade, load_wide(mixed, m + 2 * dim + WIDE))
        fade = spread(fades, r + 3)
        g = multiply(fade, load_wide(mixed, m + 3 * dim))
        h = multiply(fade, load_wide(mixed, m + 3 * dim + WIDE))
        position = first
        while position < end:
            part = position // part_size
            stop = min(end, (part + 1) * part_size)
            v_at = values[part] + (position - part * part_size) * dim + i
            for j in range(position, stop):
                x, y = load_wide(layer, v_at), load_wide(layer, v_at + WIDE)
                at = w_at + j * w_step
                w = spread(weights, at)
                a, b = fma(w, x, a), fma(w, y, b)
                w = spread(weights, at + 1)
                c, d = fma(w, x, c), fma(w, y, d)
                w = spread(weights, at + 2)
                e, f = fma(w, x, e), fma(w, y, f)
                w = spread(weights, at + 3)
                g, h = fma(w, x, g), fma(w, y, h)
                v_at += dim
            position = stop
        store(mixed, m, a)
        store(mixed, m + WIDE, b)
        store(mixed, m + dim, c)
        store(mixed, m + dim + WIDE, d)
        store(mixed, m + 2 * dim, e)
        store(mixed, m + 2 * dim + WIDE, f)
        store(mixed, m + 3 * dim, g)
        store(mixed, m + 3 * dim + WIDE, h)
    if dim % (2 * WIDE) == 0:
        return
    i = dim - WIDE
    m = m_at + i
    a = multiply(spread(fades, r), load_wide(mixed, m))
    c = multiply(spread(fades, r + 1), load_wide(mixed, m + dim))
    e = multiply(spread(fades, r + 2), load_wide(mixed, m + 2 * dim))
    g = multiply(spread(fades, r + 3), load_wide(mixed, m + 3 * dim))
    for j in range(first, end):
        part, at = j // part_size, w_at + j * w_step
        x = load_wide(layer, values[part] + (j - part * part_size) * dim + i)
        a = fma(spread(weights, at), x, a)
        c = fma(spread(weights, at + 1), x, c)
        e = fma(spread(weights, at + 2), x, e)
        g = fma(spread(weights, at + 3), x, g)
    store(mixed, m, a)
    store(mixed, m + dim, c)
    store(mixed, m + 2 * dim, e)
    store(mixed, m + 3 * dim, g)


@njit(forceinline=True)
def widen_block(
    codes: Any, c_at: int, floats: Any, f_at: int, size: int, v_of_codes: int, v_of_floats: int
) -> None:
    """K and V of a part, from e4m3."""
    for i in range(0, size, WIDTH):
        store(floats, f_at + i, load_float8(codes, c_at + i))
        store(floats, f_at + v_of_floats + i, load_float8(codes, c_at + v_of_codes + i))


@njit(forceinline=True)
def weigh_row(
    scores: Any, s_at: int, first: int, end: int, capped: bool, cap: Any, scale: Any, q: Any,
    q_at: int, layer: Any, values: Any, v_of_k: int, dim: int, part_size: int, sums_of: Any,
    r: int,
) -> None:  # fmt: skip
    """Scores of one row, and from them its weights, in ``scores``; a lane a position. ``sums_of``:
    maxima, masses and fades of the rows, of which this is row ``r``."""
    maxima, masses, fades = sums_of
    hidden = fill(MINUS_INFINITY)
    top = hidden
    for j in range(first // WIDTH * WIDTH, end, WIDTH):
        k_at = values[j // part_size] - v_of_k + j % part_size * dim
        found = multiply(eight_scores(q, q_at, layer, k_at, dim), fill(scale))
        if capped:
            found = multiply(fill(cap), tanh(found))
        found = only(first - j, end - j, found, hidden)
        store(scores, s_at + j, found)
        top = larger(top, found)
    maximum = max(maxima[r], largest(top))
    peak, mass = fill(maximum), fill(NO_FLOAT)
    for j in range(first // WIDTH * WIDTH, end, WIDTH):
        grown = exp(subtract(load(scores, s_at + j), peak))
        store(scores, s_at + j, grown)
        mass = add(mass, grown)
    fade = lane(exp(subtract(fill(maxima[r]), peak)), 0)
    masses[r] = masses[r] * fade + total(mass)
    maxima[r], fades[r] = maximum, fade


@njit(forceinline=True)
def weigh_rows(
    scores: Any, num_lanes: int, num_keys: int, masked: bool, capped: bool, cap: Any, scale: Any,
    firsts: Any, ends: Any, sums_of: Any, r: int,
) -> None:  # fmt: skip
    """As ``weigh_row``, of the rows from ``r`` on, a lane a row, from their products with the keys.
    ``num_keys`` is a multiple of eight."""
    maxima, masses, fades = sums_of
    capping, scaling, hidden = fill_wide(cap), fill_wide(scale), fill_wide(MINUS_INFINITY)
    before = load_wide(maxima, r)
    top = before
    for j in range(num_keys):
        at = j * num_lanes + r
        found = multiply(load_wide(scores, at), scaling)
        if capped:
            found = multiply(capping, tanh(found))
        if masked:
            found = within(firsts, ends, r, j, found, hidden)
        store(scores, at, found)
        top = larger(found, top)
    peak = larger(top, fill_wide(LEAST))  # a number, where nothing was seen so far
    a = b = c = d = e = f = g = h = fill_wide(NO_FLOAT)
    for j in range(0, num_keys, WIDTH):
        at = j * num_lanes + r
        a = add(a, weight(scores, at, peak))
        b = add(b, weight(scores, at + num_lanes, peak))
        c = add(c, weight(scores, at + 2 * num_lanes, peak))
        d = add(d, weight(scores, at + 3 * num_lanes, peak))
        e = add(e, weight(scores, at + 4 * num_lanes, peak))
        f = add(f, weight(scores, at + 5 * num_lanes, peak))
        g = add(g, weight(scores, at + 6 * num_lanes, peak))
        h = add(h, weight(scores, at + 7 * num_lanes, peak))
    mass = add(add(add(a, e), add(c, g)), add(add(b, f), add(d, h)))  # in the order of ``total``
    fade = exp(subtract(before, peak))
    store(masses, r, add(multiply(load_wide(masses, r), fade), mass))
    store(maxima, r, top)
    store(fades, r, fade)


@njit(inline="always")
def weight(scores: Any, at: int, peak: Any) -> Any:
    """The weight for a score, in its place."""
    grown = exp(subtract(load_wide(scores, at), peak))
    store(scores, at, grown)
    return grown


@kernel(AttentionJob)
def attention(pointer: Any) -> None:
    """Causal attention of a few consecutive tokens of one sequence, with the query heads of one KV
    head, an item each.

    Online softmax: after each tile of 64 positions, a row's sums are corrected for its new maximum.
    Tiles begin at multiples of 64 of the absolute position, so a row takes the same steps however
    its tokens were cut into items; a tile that it does not see changes nothing. A tile is read in
    parts, each within one page: of as many positions as divide both. A tile in e4m3 is converted
    once for all rows of the item.
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
    items = carray(ints(job.items), job.num_items // num_kv_heads * 4)
    capped = job.soft_cap > 0
    cap, scale = job.soft_cap, job.scale / job.soft_cap if capped else job.scale
    most_lanes = -(-job.most_tokens * group // WIDE) * WIDE
    queries = np.empty(dim * most_lanes, np.float32)
    weights = np.empty(TILE * most_lanes, np.float32)
    mixed = np.empty(most_lanes * dim, np.float32)
    maxima = np.empty(most_lanes, np.float32)
    masses = np.empty(most_lanes, np.float32)
    fades = np.empty(most_lanes, np.float32)
    firsts = np.empty(most_lanes, np.int32)
    ends = np.empty(most_lanes, np.int32)
    sums_of = maxima, masses, fades
    part_size = min(TILE, block_size & -block_size)  # block sizes are multiples of 16
    values = np.empty(TILE // part_size, np.int64)
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
        item = index // num_kv_heads * 4
        row, first_token = items[item], items[item + 1]
        num_tokens, first_position = items[item + 2], items[item + 3]
        num_rows = num_tokens * group
        num_lanes = -(-num_rows // WIDE) * WIDE
        side_by_side = WIDE > WIDTH and num_rows > WIDE // 2
        w_step, w_row = (num_lanes, 1) if side_by_side else (1, TILE)
        q_at = first_token * job.q_stride + head * group * dim
        for r in range(num_lanes if side_by_side else 0):
            taken = min(r, num_rows - 1)  # the lanes beyond the rows repeat the last one
            at = q_at + taken // group * job.q_stride + taken % group * dim
            for i in range(dim):
                queries[i * num_lanes + r] = q[at + i]
        for i in range(num_rows * dim):
            mixed[i] = NO_FLOAT
        for r in range(num_lanes):
            maxima[r], masses[r] = MINUS_INFINITY, NO_FLOAT
        last = first_position + num_tokens - 1
        start = 0 if window == 0 else max(0, first_position - window + 1) // TILE * TILE
        for base in range(start, last + 1, TILE):
            num_keys = min(TILE, last + 1 - base)
            for part in range((num_keys + part_size - 1) // part_size):
                position = base + part * part_size
                page = np.int64(table[row * job.max_blocks + position // block_size])
                k_at = page * job.page_stride
                k_at += (head * block_size + position % block_size) * dim
                if job.float8 != 0:
                    values[part] = v_of_k + part * part_size * dim
                    widen_block(
                        codes, k_at, layer, values[part] - v_of_k, part_size * dim, v_of_page,
                        v_of_k,
                    )  # fmt: skip
                    continue
                values[part] = k_at + v_of_k
                for line in range(0, part_size * dim if num_rows <= FEW_ROWS else 0, LINE):
                    prefetch(layer, values[part] + line)
            for r in range(num_lanes):
                position = first_position + min(r, num_rows - 1) // group
                ends[r] = min(position + 1 - base, num_keys)
                firsts[r] = 0 if window == 0 else max(0, position - window + 1 - base)
            if side_by_side:
                num_keys = -(-num_keys // WIDTH) * WIDTH  # of which some are hidden from all
                for j in range(0, num_keys, KEYS):
                    k_at = values[j // part_size] - v_of_k + j % part_size * dim
                    for r in range(0, num_rows, WIDE):
                        products_of_rows(
                            queries, r, num_lanes, layer, k_at, dim, weights, j * num_lanes + r
                        )
                for r in range(0, num_rows, WIDE):
                    masked = ends[r] < num_keys or firsts[r + WIDE - 1] > 0
                    weigh_rows(weights, num_lanes, num_keys, masked, capped, cap, scale, firsts,
                               ends, sums_of, r)  # fmt: skip
            else:
                for r in range(num_rows):
                    if firsts[r] < ends[r]:
                        at = q_at + r // group * job.q_stride + r % group * dim
                        weigh_row(weights, r * TILE, firsts[r], ends[r], capped, cap, scale, q, at,
                                  layer, values, v_of_k, dim, part_size, sums_of, r)  # fmt: skip
            for r in range(0, num_rows, ROWS):
                count = min(ROWS, num_rows - r)
                # What all four rows see; before and after it, each is on its own.
                low, high = TILE, TILE
                if side_by_side and count == ROWS and firsts[r + ROWS - 1] < ends[r]:
                    low, high = firsts[r + ROWS - 1], ends[r]
                for each in range(r, r + count):
                    stop = min(low, ends[each])
                    if firsts[each] < stop:
                        mix_row(mixed, each * dim, fill(fades[each]), weights, each * w_row,
                                w_step, layer, values, np.int64(firsts[each]), stop, dim,
                                part_size)  # fmt: skip
                        fades[each] = ONE
                if low < high:
                    mix_four(mixed, r * dim, fades, r, weights, r, num_lanes, layer, values, low,
                             high, dim, part_size)  # fmt: skip
                    for each in range(r, r + ROWS):
                        fades[each] = ONE
                for each in range(r, r + count):
                    after = max(high, firsts[each])
                    if after < ends[each]:
                        mix_row(mixed, each * dim, fill(fades[each]), weights, each * w_row,
                                w_step, layer, values, after, np.int64(ends[each]), dim,
                                part_size)  # fmt: skip
        for r in range(num_rows):
            token = first_token + r // group
            at = (token * job.num_heads + head * group + r % group) * dim
            mass = spread(masses, r)
            for i in range(0, dim, WIDE):
                store(out, at + i, divide(load_wide(mixed, r * dim + i), mass))
