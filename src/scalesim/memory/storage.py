"""Pool memory on a CPU: one aligned numpy mapping a pool, touched only when used."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence

import numpy as np

from scalesim.core import Bytes2D


def allocate_pages(num_pages: int, page_bytes: int) -> Bytes2D:
    """``[num_pages, page_bytes]`` of uint8, page-aligned, zero until written.

    An anonymous mapping: the system gives memory when a page is first touched, so a pool that is
    larger than what is used costs nothing.
    """
    mapping = mmap.mmap(-1, max(1, num_pages * page_bytes))
    flat = np.frombuffer(mapping, np.uint8, count=num_pages * page_bytes)
    return flat.reshape(num_pages, page_bytes)


def writer(pool: Bytes2D) -> Callable[[Sequence[int], Bytes2D], None]:
    """Puts rows of bytes into pages of ``pool``."""

    def write(pages: Sequence[int], rows: Bytes2D) -> None:
        pool[list(pages)] = rows

    return write
