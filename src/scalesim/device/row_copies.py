"""Copies of rows between device and host memory, one call of the CUDA runtime for each run of rows.

The runtime's function is called directly. A copy through torch takes several times as long on the
host (slices, dispatch, a stream to enter): longer than the bus takes for a small page.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

Rows: TypeAlias = Sequence[tuple[int, int, int]]
"""(row of the destination, row of the source, how many rows) of each copy."""
Memcpy: TypeAlias = Callable[[int, int, int, int, int], int]
"""(destination, source, bytes, direction, stream) to an error, 0 if there is none."""
ANY_DIRECTION = 4  # cudaMemcpyDefault: the runtime knows whose memory an address is


@lru_cache
def runtime_memcpy(cuda_version: str | None) -> Memcpy | None:
    """``cudaMemcpyAsync`` of the runtime of ``cuda_version`` that this process has loaded; ``None``
    if there is none, as with ROCm or a runtime that was linked into its caller."""
    if cuda_version is None or not hasattr(os, "RTLD_NOLOAD"):
        return None
    name = f"libcudart.so.{cuda_version.split('.')[0]}"
    try:
        # one that is loaded, and not a second one from elsewhere
        library = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return None
    return typed(library.cudaMemcpyAsync)


def typed(function: Any) -> Memcpy:
    """A foreign function with the types of ``Memcpy``."""
    address, size = ctypes.c_void_p, ctypes.c_size_t
    function.argtypes = (address, address, size, ctypes.c_int, address)
    function.restype = ctypes.c_int
    memcpy: Memcpy = function
    return memcpy


def copy_rows(memcpy: Memcpy, dst: Any, src: Any, rows: Rows, stream: int) -> None:
    """Copy rows of the tensor ``src`` to rows of ``dst``, both C-contiguous, their rows of the same
    size. Raises ``RuntimeError`` for a copy that the runtime refuses; those before it may still
    run."""
    assert dst.is_contiguous() and src.is_contiguous(), "rows that do not lie one after the other"
    row_bytes = dst.nbytes // len(dst)
    assert row_bytes == src.nbytes // len(src), "rows of two sizes"
    to, of = dst.data_ptr(), src.data_ptr()
    for row, source, count in rows:
        error = memcpy(
            to + row * row_bytes, of + source * row_bytes, count * row_bytes, ANY_DIRECTION, stream
        )
        if error:
            raise RuntimeError(f"cudaMemcpyAsync of {count * row_bytes} bytes: CUDA error {error}")
