"""The page pool as the kernels see it."""

from __future__ import annotations

import torch
from scalesim_kernels.float8 import FLOAT8
from torch import Tensor

from scalesim.core import Bytes2D
from scalesim.errors import ConfigError
from scalesim.memory.geometry import PageGeometry


def kv_dtype(geometry: PageGeometry, dtype: torch.dtype) -> torch.dtype:
    """The dtype of K and V on pages of ``geometry``, for a model of ``dtype``: the model's, or e4m3
    where an element is a byte."""
    return FLOAT8 if geometry.dtype_bytes == FLOAT8.itemsize else dtype


def pool_view(pages: Bytes2D | Tensor, geometry: PageGeometry, dtype: torch.dtype) -> Tensor:
    """The raw ``pages``, uint8 ``[num_pages, page_bytes]``, as the pool of the kernels of a model
    of ``dtype``: ``[num_pages, layer, 2, kv_head, block_size, head_dim]`` of ``kv_dtype``. Pages
    that are larger keep their ends unused.

    Shares memory. Raises ``ConfigError`` when the pages do not fit the geometry or the dtype.
    """
    dtype = kv_dtype(geometry, dtype)
    if dtype.itemsize != geometry.dtype_bytes:
        raise ConfigError(
            f"{dtype} has {dtype.itemsize} bytes; the geometry {geometry.dtype_bytes}"
        )
    if pages.shape[1] < geometry.page_bytes or pages.shape[1] % dtype.itemsize:
        raise ConfigError(f"pages of {pages.shape[1]} bytes; the geometry's {geometry.page_bytes}")
    used = torch.as_tensor(pages)[:, : geometry.page_bytes]
    return used.view(dtype).view(len(pages), *geometry.shape)
