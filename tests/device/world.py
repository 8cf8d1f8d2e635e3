"""Engines on the hostile device: the real link, runner, planner and scheduler over its streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scalesim_kernels import KernelSet, LoraBatch, LoraSite, PagedBatch, select

from scalesim.core import Bytes2D
from scalesim.engine.build import parts_for, with_settings
from scalesim.engine.engine import Engine
from scalesim.memory.links.cuda_link import CudaLink
from scalesim.memory.links.source_link import SourceLink
from scalesim.memory.pools.pinned import PinnedPages
from scalesim.model.runner.cuda_runner import CudaRunner
from tests.device.hostile_device import HostileDevice
from tests.engine.world import BLOCK, PAGE_BYTES, TOKENIZER, tiny_model
from tests.inside import part

DEVICE, HOST_POOL, TABLES = "device page", "host page", "rotary tables"


def zeros(num_bytes: int) -> torch.Tensor:
    return torch.zeros(num_bytes, dtype=torch.uint8)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def hostile(**options: Any) -> HostileDevice:
    return HostileDevice(pinned=zeros, empty=empty, **options)


def watching(kernels: KernelSet, device: HostileDevice) -> KernelSet:
    """``kernels``, telling ``device`` which pages a step reads and writes, at the moment it
    does."""

    def pages(batch: PagedBatch, rows: torch.Tensor, blocks: torch.Tensor) -> set[int]:
        real = rows != 0
        return set(batch.block_table[rows[real].long(), blocks[real].long()].tolist())

    def store(qkv: Any, pool: Any, layer: int, batch: PagedBatch, *more: Any) -> Any:
        if layer == 0:
            device.touch(TABLES, [0], is_write=False)
            blocks = batch.positions // pool.shape[4]
            device.touch(DEVICE, pages(batch, batch.token_rows, blocks), is_write=True)
        return kernels.qk_norm_rope_store(qkv, pool, layer, batch, *more)

    def read(pool: Any, batch: PagedBatch) -> None:
        for row, length in zip(batch.seq_rows, batch.context_lens, strict=True):
            blocks = torch.arange(-(-int(length) // pool.shape[4]))
            device.touch(DEVICE, pages(batch, row.expand(len(blocks)), blocks), is_write=False)

    def decode(
        q: Any, pool: Any, layer: int, batch: PagedBatch, *more: Any, **options: Any
    ) -> None:
        if layer == 0:
            read(pool, batch)
        kernels.paged_decode(q, pool, layer, batch, *more, **options)

    def copy_pages(pool: Any, src: torch.Tensor, dst: torch.Tensor) -> None:
        device.touch(DEVICE, src.tolist(), is_write=False)
        device.touch(DEVICE, dst.tolist(), is_write=True)
        kernels.copy_pages(pool, src, dst)

    def touch_weights(
        pool: Any, layer: int, site: LoraSite, lora: LoraBatch, offsets: torch.Tensor
    ) -> None:
        page_elems = pool.stride(0)
        for row, layout in zip(lora.rows.tolist(), lora.layouts.tolist(), strict=True):
            slices = range(site.first_slice, site.first_slice + site.num_slices)
            for index in slices if row else ():
                rank = int(lora.directory.ranks[layout, layer, index])
                blocks = (offsets[layout, layer, index, :rank] // page_elems).unique()
                pages = lora.block_table[row, blocks].tolist()
                device.touch(DEVICE, pages, is_write=False)

    def shrink(x: Any, pool: Any, layer: int, site: LoraSite, lora: LoraBatch) -> Any:
        touch_weights(pool, layer, site, lora, lora.directory.a_offsets)
        return kernels.lora_shrink(x, pool, layer, site, lora)

    def expand(h: Any, pool: Any, layer: int, site: LoraSite, lora: LoraBatch, out: Any) -> None:
        touch_weights(pool, layer, site, lora, lora.directory.b_offsets)
        kernels.lora_expand(h, pool, layer, site, lora, out)

    return replace(
        kernels, qk_norm_rope_store=store, paged_decode=decode, copy_pages=copy_pages,
        lora_shrink=shrink, lora_expand=expand,
    )  # fmt: skip


def hostile_engine(
    device: HostileDevice,
    *,
    device_pages: int = 400,
    host_pages: int = 400,
    kernels: KernelSet | None = None,
    watch: bool = True,
    **settings: Any,
) -> Engine:
    """As ``tests.engine.world.tiny_engine``, on ``device``'s streams, every page watched. Adapters
    are read on the engine's thread, a piece a turn, so that all repeats."""
    config = with_settings(
        None,
        {
            "device_memory": PAGE_BYTES * (device_pages + 1),
            "host_memory": PAGE_BYTES * host_pages,
            "block_size": BLOCK,
            "digests": True,
            "max_num_seqs": 4,
            "max_num_batched_tokens": 96,
            "integrity": "raise",
            **settings,
        },
    )
    kernels = kernels or select("cpu")
    if watch:
        kernels = watching(kernels, device)
        # Weights and tables are made by work that is given to no stream.
        made = lambda: device.touch(TABLES, [0], is_write=True)  # noqa: E731
        device.stream("default").submit(made)
    parts = parts_for(tiny_model(), config, kernels, TOKENIZER, device)
    reads = reads_of(parts)
    reads.threaded = False
    if watch:
        link = link_of(parts)
        device.watch(DEVICE, link.device_pages, parts.memory.page_bytes)
        device.watch(HOST_POOL, part(link, PinnedPages).pages, parts.memory.page_bytes)
        write = reads.write

        def watched(pages: Sequence[int], rows: Bytes2D) -> None:
            device.touch(HOST_POOL, pages, is_write=True)
            write(pages, rows)

        reads.write = watched
    return Engine(parts)


def reads_of(parts: Any) -> SourceLink:
    assert isinstance(parts.link, SourceLink)
    return parts.link


def link_of(parts: Any) -> CudaLink:
    link = reads_of(parts).link
    assert isinstance(link, CudaLink)
    return link


def runner_of(parts: Any) -> CudaRunner:
    """The runner of the engine's own model."""
    return part(parts.runner, CudaRunner)


def prompts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    return np.random.default_rng(seed).integers(0, 256, (count, length)).tolist()
