"""Pool memory: on a CPU one aligned mapping a pool, touched only when used; on a GPU a tensor."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from scalesim.core import Bytes2D
from scalesim.errors import ConfigError

HUGE_PAGE = 2 << 20
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def allocate_pages(num_pages: int, page_bytes: int, setting: str = "the pool") -> Bytes2D:
    """``[num_pages, page_bytes]`` of uint8, aligned to 2 MiB, zero until written.
    Raises ``ConfigError`` naming ``setting`` where the system does not give as much.

    An anonymous mapping: the system gives memory when a page is first touched, so a pool that is
    larger than what is used costs nothing. Huge pages where the system has them: attention walks
    all of the pool once a layer (measured: gathering pages took 0.8 of the time).
    """
    num_bytes = num_pages * page_bytes
    try:
        mapping = mmap.mmap(-1, num_bytes + HUGE_PAGE, **PRIVATE)
    except (OSError, OverflowError, ValueError, MemoryError) as error:
        raise ConfigError(
            f"{setting} is {num_bytes} bytes, and the system refuses as much memory ({error}); "
            "lower it"
        ) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel built without them
            mapping.madvise(mmap.MADV_HUGEPAGE)
    flat = np.frombuffer(mapping, np.uint8)
    first = -flat.ctypes.data % HUGE_PAGE
    return flat[first : first + num_bytes].reshape(num_pages, page_bytes)


def allocate_device_pages(num_pages: int, page_bytes: int, place: str) -> Any:
    """``[num_pages, page_bytes]`` of uint8 as a tensor at ``place``; its bytes are arbitrary."""
    import torch

    return torch.empty((num_pages, page_bytes), dtype=torch.uint8, device=place)


def writer(pool: Bytes2D) -> Callable[[Sequence[int], Bytes2D], None]:
    """Puts rows of bytes into pages of ``pool``."""

    def write(pages: Sequence[int], rows: Bytes2D) -> None:
        pool[list(pages)] = rows

    return write
