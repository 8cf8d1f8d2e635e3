"""Pool memory: on a CPU one aligned numpy mapping a pool, touched only when used; on a GPU a
tensor."""

from __future__ import annotations

import mmap
from typing import Any

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


def allocate_device_pages(num_pages: int, page_bytes: int, place: str) -> Any:
    """``[num_pages, page_bytes]`` of uint8 as a tensor at ``place``; its bytes are arbitrary."""
    import torch

    return torch.empty((num_pages, page_bytes), dtype=torch.uint8, device=place)
