"""The memory of a pool: on a CPU an aligned mapping that is touched only when used, on a GPU a
tensor."""

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
    """A uint8 array ``[num_pages, page_bytes]``, aligned to 2 MiB and zero until written. Raises
    ``ConfigError``, naming ``setting``, if the system refuses that much memory.

    The mapping is anonymous: the system gives memory when a page is first touched, so a pool that
    is larger than needed costs nothing. Huge pages are used where the system has them, since
    attention reads the whole pool once a layer (measured: gathering pages took 0.8 of the time).
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
    """A uint8 tensor ``[num_pages, page_bytes]`` at ``place``; its content is arbitrary."""
    import torch

    return torch.empty((num_pages, page_bytes), dtype=torch.uint8, device=place)


def writer(pool: Bytes2D) -> Callable[[Sequence[int], Bytes2D], None]:
    """A function that writes rows, uint8 ``[n, page_bytes]``, to ``n`` pages of ``pool``."""

    def write(pages: Sequence[int], rows: Bytes2D) -> None:
        pool[list(pages)] = rows

    return write
