"""Adapters: shrink and expand of many distinct ones against ``torch.bmm`` over gathered slots and
against the bytes; and what 64 of them cost a turn of an engine.
"""

from __future__ import annotations

import gc
import hashlib
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scalesim_kernels.paged_lora import RANK_TILE

from benchmarks.gpu import roofline
from benchmarks.gpu.attention import copy_bandwidth
from benchmarks.gpu.bench import Bench, SkipError
from benchmarks.gpu.turns import LLAMA_8B, TINY, dummy
from benchmarks.lora import COUNTS, FLOOR, GOAL, MANY, RANKS, dense, make_work, paged
from scalesim.config import EngineConfig, SchedulerConfig
from scalesim.engine.build import parts_for
from scalesim.engine.engine import Engine
from scalesim.memory.geometry import PageGeometry
from scalesim.memory.leases.adapters import AdapterContent
from scalesim.memory.links.link import InMemorySource
from scalesim.model.adapters.folder import AdapterFolders
from scalesim.model.adapters.layout import LoraLayout, lora_sites
from scalesim.model.checkpoint.loader import LoadedModel

HIDDEN, PREFILL = 4096, 64  # width of the layer; tokens of each adapter in the prefill
TAX_RANK, PROMPT, OUTPUT = 16, 512, 64


def run(bench: Bench) -> None:
    kernels_alone(bench)
    bench.need_s(45.0, "a turn with 64 adapters")
    tax(bench)


def kernels_alone(bench: Bench) -> None:
    """q, k, v of one layer, as ``benchmarks.lora``; here in CUDA graphs."""
    counts, ranks = (COUNTS, RANKS) if bench.on_gpu else ((1, 3), (8,))
    hidden, device = HIDDEN if bench.on_gpu else 256, torch.device(bench.place)
    kernels = bench.kernels()
    bandwidth = copy_bandwidth(bench)
    table = bench.report.table(
        "Adapters, q, k and v of one layer",
        ["phase", "adapters", "rank", "µs", "expected µs", "of copy",
         "bmm over gathered slots, over ours"],
    )  # fmt: skip
    worst = {"share": 10.0, "bmm": 10.0}
    for phase, each in (("decode", 1), ("prefill", PREFILL if bench.on_gpu else 8)):
        for count in counts:
            for rank in ranks:
                what = f"{phase}, {count} adapters of rank {rank}"
                try:
                    bench.need_s(1.0, what)
                except SkipError as skipped:
                    bench.report.leave_out(what, skipped)
                    continue
                work = make_work(
                    count, rank, each, hidden, device, bench.dtype, kernels.row_multiple
                )
                ours = bench.seconds(lambda work=work: paged(kernels, work))
                peer = bench.seconds(lambda work=work: dense(work))
                share = work.num_bytes / ours / bandwidth
                expected = ""
                if phase == "decode" and rank <= RANK_TILE and hidden == HIDDEN:
                    expected = f"{1e6 * roofline.adapters(count, rank).seconds:.0f}"
                table.add(phase, count, rank, 1e6 * ours, expected, share, peer / ours)
                worst["bmm"] = min(worst["bmm"], peer / ours)
                if phase == "decode" and count >= MANY:
                    worst["share"] = min(worst["share"], share)
    bench.report.hold("goal", "adapters: bmm over gathered slots takes, of our time", worst["bmm"],
                      least=1.0)  # fmt: skip
    if worst["share"] < 10.0:
        what = f"adapters, decode with {MANY} and more: share of copy bandwidth"
        bench.report.hold("floor", what, worst["share"], least=FLOOR)
        bench.report.hold("goal", what, worst["share"], least=GOAL)


def tax(bench: Bench) -> None:
    """One turn of many agents: on the base, all on one adapter, and each on its own. Everything is
    resident: this is the price of computing, not of moving."""
    loaded = dummy(bench, LLAMA_8B if bench.on_gpu else TINY)
    agents = 64 if bench.on_gpu else 3
    prompt, output = (PROMPT, OUTPUT) if bench.on_gpu else (20, 3)
    table = bench.report.table(
        f"A turn of {agents} agents, prompts of {prompt}, {output} tokens each",
        ["distinct adapters", "rank", "seconds", "over the base"],
    )
    base_s = 0.0
    for distinct in (0, 1, agents):
        seconds = turn_s(bench, loaded, agents, distinct, prompt, output)
        base_s = base_s or seconds
        table.add(distinct, TAX_RANK if distinct else "", seconds, seconds / base_s)
    bench.report.figures["adapters_tax"] = table.rows[-1][3]


def turn_s(
    bench: Bench, loaded: LoadedModel, agents: int, distinct: int, prompt: int, output: int
) -> float:
    gc.collect()  # the last engine's pools
    shape, itemsize = loaded.config, loaded.model.dtype.itemsize
    geometry = PageGeometry.choose(shape.num_layers, shape.num_kv_heads, shape.head_dim, itemsize)
    each = layout_of(loaded, geometry).num_pages
    pages = agents * 2 * geometry.blocks_for(prompt + output) + distinct * each + 1
    config = EngineConfig(
        device=bench.place,
        device_memory=pages * geometry.page_bytes,
        host_memory=distinct * each * geometry.page_bytes,
        max_model_len=prompt + output,
        scheduler=SchedulerConfig(
            max_num_seqs=agents, max_num_batched_tokens=8192 if bench.on_gpu else 64
        ),
    )
    device = None if bench.on_gpu else bench.device
    parts = parts_for(loaded, config, bench.kernels(), device=device)
    folders = parts.read_adapter
    assert isinstance(folders, AdapterFolders)
    made = RandomAdapters(loaded, geometry, folders)
    rng = np.random.default_rng(bench.seed)
    with Engine(replace(parts, read_adapter=made)) as engine:
        handles = [
            engine.agent(agent, adapter=f"{agent % distinct}" if distinct else None)
            for agent in range(agents)
        ]
        for _ in range(2):  # the first loads, compiles and captures
            requests = [
                handle.request(
                    rng.integers(0, shape.vocab_size, prompt).tolist(), max_tokens=output,
                    temperature=0.0, ignore_eos=True,
                )
                for handle in handles
            ]  # fmt: skip
            start = time.perf_counter()
            engine.run(requests)
            seconds = time.perf_counter() - start
    return seconds


def layout_of(loaded: LoadedModel, geometry: PageGeometry, rank: int = TAX_RANK) -> LoraLayout:
    """All seven projections."""
    layers = loaded.config.num_layers
    ranks, scales = ((rank,) * 7,) * layers, ((1.0,) * 7,) * layers
    page_elems = geometry.page_bytes // loaded.model.dtype.itemsize
    return LoraLayout(lora_sites(loaded.config), ranks, scales, page_elems)


class RandomAdapters:
    """A reader of adapters that are nowhere: of any name, all of the same small random weights, in
    pages of their own."""

    def __init__(
        self, loaded: LoadedModel, geometry: PageGeometry, folders: AdapterFolders,
        rank: int = TAX_RANK,
    ) -> None:  # fmt: skip
        layout = layout_of(loaded, geometry, rank)
        shape, dtype = (layout.num_pages, layout.page_elems), loaded.model.dtype
        weights = 1e-3 * torch.randn(shape, dtype=dtype, device=loaded.model.place)
        self._pages = weights.view(torch.uint8).cpu().numpy()
        self._number = folders.layouts.number(layout)

    def __call__(self, path: str | Path) -> AdapterContent:
        digest = hashlib.sha256(str(path).encode()).digest()[:16]
        pages = self._pages
        return AdapterContent(digest, self._number, len(pages), None, InMemorySource(pages), pages)
