"""Pool memory on a CPU: one aligned mapping a pool, touched only when used."""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np

from scalesim.core import Bytes2D

HUGE_PAGE = 2 << 20
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def allocate_pages(num_pages: int, page_bytes: int) -> Bytes2D:
    """``[num_pages, page_bytes]`` of uint8, aligned to 2 MiB, zero until written.

    An anonymous mapping: the system gives memory when a page is first touched, so a pool that is
    larger than what is used costs nothing. Huge pages where the system has them: attention walks
    all of the pool once a layer (measured: gathering pages took 0.8 of the time).
    """
    num_bytes = num_pages * page_bytes
    mapping = mmap.mmap(-1, num_bytes + HUGE_PAGE, **PRIVATE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel built without them
            mapping.madvise(mmap.MADV_HUGEPAGE)
    flat = np.frombuffer(mapping, np.uint8)
    first = -flat.ctypes.data % HUGE_PAGE
    return flat[first : first + num_bytes].reshape(num_pages, page_bytes)
