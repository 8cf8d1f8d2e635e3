"""The page pool as the kernels see it."""

from __future__ import annotations

import torch
from torch import Tensor

from scalesim.core import Bytes2D
from scalesim.errors import ConfigError
from scalesim.memory.geometry import PageGeometry


def pool_view(pages: Bytes2D, geometry: PageGeometry, dtype: torch.dtype) -> Tensor:
    """The raw pages as the kernels' pool: ``[num_pages, layer, 2, kv_head, block_size, head_dim]``.

    Shares memory. Raises ``ConfigError`` when the pages do not fit the geometry or the dtype.
    """
    if dtype.itemsize != geometry.dtype_bytes:
        raise ConfigError(
            f"{dtype} has {dtype.itemsize} bytes; the geometry {geometry.dtype_bytes}"
        )
    if pages.shape[1] != geometry.page_bytes:
        raise ConfigError(f"pages of {pages.shape[1]} bytes; the geometry's {geometry.page_bytes}")
    return torch.from_numpy(pages).view(dtype).view(len(pages), *geometry.shape)
