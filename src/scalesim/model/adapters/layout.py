"""The layout of an adapter's pages, with rank rows packed at their true rank, and its directory.

An adapter is a range of elements of the model's dtype, cut into pages. A rank row (a row of A, a
column of B) is contiguous, begins at a multiple of 64 elements and lies within one page; the end of
a page that is too short for the next row stays empty. The layout follows from the ranks alone, so
adapters of one shape share a layout.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scalesim_kernels import LoraDirectory, LoraSite

from scalesim.core import Int64s
from scalesim.errors import AdapterError
from scalesim.model.checkpoint.config import ModelConfig

ALIGN = 64  # elements: the alignment for wide loads of a GPU
NUM_SLICES = 7
MAX_RANK = 256
Ranks: TypeAlias = tuple[tuple[int, ...], ...]
Scales: TypeAlias = tuple[tuple[float, ...], ...]


def lora_sites(config: ModelConfig) -> tuple[LoraSite, LoraSite, LoraSite, LoraSite]:
    """The four sites of a layer, one for each input of linear layers: q, k, v; o; gate, up;
    down."""
    hidden, wide = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return (
        LoraSite(0, hidden, (q, kv, kv)),
        LoraSite(3, q, (hidden,)),
        LoraSite(4, hidden, (wide, wide)),
        LoraSite(6, wide, (hidden,)),
    )


@dataclass(frozen=True)
class LoraLayout:
    """The places of an adapter's rank rows. ``ranks`` and ``scales`` are by layer and slice. Raises
    ``AdapterError`` if a row is longer than a page."""

    sites: tuple[LoraSite, ...]
    ranks: Ranks
    scales: Scales
    page_elems: int

    @cached_property
    def _packed(self) -> tuple[Int64s, Int64s, int]:
        max_rank = max(max(layer) for layer in self.ranks)
        shape = (len(self.ranks), NUM_SLICES, max_rank)
        a, b = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        end = 0
        for layer, index, side, width in self._matrices():
            offsets = (a if side == "A" else b)[layer, index]
            end = self._place(offsets, self.ranks[layer][index], width, end)
        return a, b, end

    def _matrices(self) -> Iterator[tuple[int, int, str, int]]:
        """All matrices in packing order: (layer, slice, "A" or "B", width of a rank row)."""
        for layer in range(len(self.ranks)):
            for site in self.sites:
                slices = range(site.first_slice, site.first_slice + site.num_slices)
                yield from ((layer, index, "A", site.in_width) for index in slices)
                for index, width in zip(slices, site.out_widths, strict=True):
                    yield layer, index, "B", width

    def _place(self, offsets: Int64s, rank: int, width: int, end: int) -> int:
        """Place ``rank`` rows behind ``end``, and return the new end."""
        stride = -(-width // ALIGN) * ALIGN
        if stride > self.page_elems:
            raise AdapterError(
                f"a rank row of {width} elements is longer than a page of {self.page_elems}; "
                "raise block_size"
            )
        per_page = self.page_elems // stride
        done = 0
        while done < rank:
            room = (self.page_elems - end % self.page_elems) // stride
            if room == 0:
                end = -(-end // self.page_elems) * self.page_elems
                room = per_page
            count = min(room, rank - done)
            offsets[done : done + count] = end + stride * np.arange(count)
            done, end = done + count, end + stride * count
        return end

    @property
    def a_offsets(self) -> Int64s:
        """``[num_layers, 7, max_rank]``: the first element of each row of A."""
        return self._packed[0]

    @property
    def b_offsets(self) -> Int64s:
        return self._packed[1]

    @property
    def num_pages(self) -> int:
        return -(-self._packed[2] // self.page_elems)

    @cached_property
    def num_elements(self) -> int:
        """Number of elements of the weights, without gaps."""
        return sum(self.ranks[layer][index] * width for layer, index, _, width in self._matrices())

    def rows(self) -> list[tuple[int, int, str, int, int, Int64s]]:
        """All matrices in packing order: (layer, slice, "A" or "B", width, rank, offsets)."""
        sides = {"A": self.a_offsets, "B": self.b_offsets}
        return [
            (layer, index, side, width, rank, sides[side][layer, index, :rank])
            for layer, index, side, width in self._matrices()
            if (rank := self.ranks[layer][index])
        ]


def max_adapter_pages(config: ModelConfig, page_bytes: int, dtype_bytes: int) -> int:
    """Pages of the largest adapter for ``config``; 0 if pages are too small for any adapter."""
    ranks = ((MAX_RANK,) * NUM_SLICES,) * config.num_layers
    scales = ((1.0,) * NUM_SLICES,) * config.num_layers
    try:
        return LoraLayout(lora_sites(config), ranks, scales, page_bytes // dtype_bytes).num_pages
    except AdapterError:
        return 0


@dataclass
class LayoutTable:
    """The layouts of an engine's adapters, numbered in order of their first use. The table only
    grows: adding an adapter writes it, the runner reads it."""

    layouts: list[LoraLayout] = field(default_factory=list)
    _numbers: dict[LoraLayout, int] = field(default_factory=dict)
    _made: tuple[int, LoraDirectory] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def number(self, layout: LoraLayout) -> int:
        with self._lock:
            if layout not in self._numbers:
                self._numbers[layout] = len(self.layouts)
                self.layouts.append(layout)
            return self._numbers[layout]

    def directory(self) -> LoraDirectory:
        """The directory of all layouts; the same object until a layout is added."""
        count = len(self.layouts)
        if self._made is None or self._made[0] != count:
            self._made = (count, make_directory(self.layouts[:count]))
        return self._made[1]


def make_directory(layouts: list[LoraLayout], max_rank: int | None = None) -> LoraDirectory:
    """The kernels' directory of ``layouts``, with room for ``max_rank`` rank rows per slice
    (``None``: the largest rank)."""
    max_rank = max_rank or max(layout.a_offsets.shape[2] for layout in layouts)

    def stacked(arrays: list[Int64s]) -> Any:
        shape = (len(layouts), *arrays[0].shape[:2], max_rank)
        whole = np.zeros(shape, np.int64)
        for target, source in zip(whole, arrays, strict=True):
            target[..., : source.shape[2]] = source
        return torch.from_numpy(whole)

    def table(values: list[Any], dtype: npt.DTypeLike) -> Any:
        return torch.from_numpy(np.array(values, dtype))

    return LoraDirectory(
        stacked([layout.a_offsets for layout in layouts]),
        stacked([layout.b_offsets for layout in layouts]),
        table([layout.ranks for layout in layouts], np.int32),
        table([layout.scales for layout in layouts], np.float32),
    )
