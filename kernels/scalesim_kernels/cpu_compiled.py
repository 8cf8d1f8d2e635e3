"""The kernels of the CPU set that numba compiles, in fp32: the rotary embedding with the KV store,
RMSNorm and gated activations; and, in ``cpu_compiled_attention``, attention that reads pages where
they lie.

A kernel is a C function of one job, which a team of threads runs together: each thread takes the
next item until there is none. Who computes an item changes nothing: the bits of a row follow from
that row's inputs alone (``cpu_lanes``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit

from .cpu_float8 import store_float8
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
    load,
    multiply,
    octets,
    store,
    subtract,
    take_next,
    tanh,
    total,
)

TOKENS = 8  # tokens of an item of the KV store
ONE, MINUS_ONE, NO_FLOAT = np.float32(1), np.float32(-1), np.float32(0)
GELU_SCALE, GELU_CUBIC = np.float32(0.7978845608028654), np.float32(0.044715)  # sqrt(2 / pi)


RopeJob = job(
    "RopeJob",
    "qkv qkv_size layer layer_size page_stride table table_size max_blocks rows positions "
    "cos_sin cos_sin_size num_tokens num_heads num_kv_heads head_dim block_size float8 q_weight "
    "k_weight",
    "eps",
)
NormJob = job("NormJob", "x residual weight out num_rows width rows_each", "eps")
GateJob = job("GateJob", "gate_up out num_rows width rows_each gelu")


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
