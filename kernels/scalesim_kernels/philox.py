"""Philox4x32-10, the counter-based generator of sampling, in numpy.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. No state: a draw is a
function of (key, counter), so it does not depend on the batch, the thread, or on how often it is
repeated.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Words: TypeAlias = npt.NDArray[np.uint64]

LOW = np.uint64(0xFFFFFFFF)
SHIFT = np.uint64(32)
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
ROUNDS = 10


def philox4x32(
    counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]
) -> tuple[Words, Words, Words, Words]:
    """Ten rounds over arrays of 32-bit words, each held in uint64 (products need 64 bits)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        product0, product1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> SHIFT) ^ c1 ^ k0,
            product1 & LOW,
            (product0 >> SHIFT) ^ c3 ^ k1,
            product0 & LOW,
        )
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return c0, c1, c2, c3


def uniform(keys: npt.NDArray[Any], positions: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Draws in ``[0, 1)`` with 24 bits, one per (64-bit key, position); both ``[n]`` integers."""
    wide = np.ascontiguousarray(keys).view(np.uint64)
    zero = np.zeros_like(wide)
    counter = (positions.astype(np.uint64) & LOW, zero, zero, zero)
    word = philox4x32(counter, (wide & LOW, wide >> SHIFT))[0]
    return (word >> np.uint64(8)).astype(np.float64) / 2.0**24
