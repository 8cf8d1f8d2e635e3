"""Triton's interpreter with a matrix product whose rows stand alone, as those of GPUs do.

The interpreter multiplies with numpy, and numpy with a BLAS, which gives a row other bits at
another place in the matrix (measured, OpenBLAS 0.3.31 for Haswell: rows 6 to 15 of 16 against row
0, by the last bit). Checks that compare bits would find that, not faults of kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import numpy.typing as npt

from ..launch import interpreted


class _Numpy:
    """numpy but for ``matmul``."""

    def __getattr__(self, name: str) -> Any:
        return getattr(numpy, name)

    @staticmethod
    def matmul(a: npt.NDArray[Any], b: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """``[m, k] @ [k, n]``; products are added in the order of k, one by one."""
        a, b = a.astype(dtype), b.astype(dtype)
        total = numpy.zeros((a.shape[0], b.shape[1]), dtype)
        for k in range(a.shape[1]):
            total += a[:, k, None] * b[None, k]
        return total


@contextmanager
def steady_interpreter() -> Iterator[None]:
    """Inside, interpreted kernels multiply matrices so. Nothing changes where kernels compile."""
    if not interpreted():
        yield
        return
    from triton.runtime import interpreter

    interpreter.np = _Numpy()
    try:
        yield
    finally:
        interpreter.np = numpy
