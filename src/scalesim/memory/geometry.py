"""The size and layout of a page, from a model's shape. Pure arithmetic: no tensor, no pool.

A page holds ``block_size`` tokens of KV for all layers, laid out as
``[layer, 2, kv_head, block_size, head_dim]``, C-contiguous, K at index 0 and V at index 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from scalesim.errors import ConfigError

BLOCK_MULTIPLE = 16  # block sizes are multiples of this
BLOCK_SIZES = (16, 32, 64)  # of an engine's own model, which decides the bytes of a page
MIN_PAGE_BYTES = 64 * 1024
"""Copies of smaller pieces do not fill a link (4-24 KiB pieces reach a tenth of its rate)."""


@dataclass(frozen=True, slots=True)
class PageGeometry:
    """The shape of a page. Raises ``ConfigError`` if a dimension is not positive, or ``block_size``
    is no multiple of 16."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype_bytes: int

    def __post_init__(self) -> None:
        for part in fields(self):
            if getattr(self, part.name) <= 0:
                raise ConfigError(f"{part.name} is {getattr(self, part.name)}: must be positive")
        if self.block_size % BLOCK_MULTIPLE:
            raise ConfigError(
                f"block_size is {self.block_size}: must be a multiple of {BLOCK_MULTIPLE}"
            )

    @classmethod
    def choose(
        cls,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        dtype_bytes: int,
        block_size: int | None = None,
    ) -> PageGeometry:
        """The geometry with the smallest block size whose page reaches 64 KiB; the largest block
        size if none does. ``block_size`` overrides the choice."""
        sizes = BLOCK_SIZES if block_size is None else (block_size,)
        choices = [cls(num_layers, num_kv_heads, head_dim, size, dtype_bytes) for size in sizes]
        return next((c for c in choices if c.page_bytes >= MIN_PAGE_BYTES), choices[-1])

    @classmethod
    def fitting(
        cls, num_layers: int, num_kv_heads: int, head_dim: int, dtype_bytes: int, page_bytes: int,
        block_sizes: Sequence[int] | None = None,
    ) -> PageGeometry:  # fmt: skip
        """The geometry with the largest block size whose KV fits into ``page_bytes``: one of
        ``block_sizes``, 16 among them, or any. Raises ``ConfigError`` if none does."""
        least = cls(num_layers, num_kv_heads, head_dim, BLOCK_MULTIPLE, dtype_bytes)
        if least.page_bytes > page_bytes:
            raise ConfigError(
                f"KV of {BLOCK_MULTIPLE} tokens has {least.page_bytes} bytes, and a page has "
                f"{page_bytes}"
            )
        most = page_bytes // least.page_bytes * BLOCK_MULTIPLE
        if block_sizes is not None:
            most = max(size for size in block_sizes if size <= most)
        return replace(least, block_size=most)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """``[layer, 2, kv_head, block_size, head_dim]``."""
        return (self.num_layers, 2, self.num_kv_heads, self.block_size, self.head_dim)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's K and V over all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * self.dtype_bytes

    @property
    def page_bytes(self) -> int:
        return self.token_bytes * self.block_size

    def blocks_for(self, num_tokens: int) -> int:
        """The number of blocks that hold ``num_tokens`` tokens; the last block may be partial."""
        return -(-num_tokens // self.block_size)
