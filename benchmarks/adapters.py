"""Adapters in pages: what packing wastes, what padded slots take, what activated adapters save.

Counts only, no speeds: real layouts for the shapes of three models in bf16, and real memory with a
link in virtual time, so that every figure repeats exactly.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from benchmarks.report import Report, table
from scalesim.memory.eviction.policies import policy_named
from scalesim.memory.geometry import PageGeometry
from scalesim.memory.leases.adapters import AdapterContent, adapter_spec
from scalesim.memory.links.link import InMemorySource
from scalesim.memory.links.virtual_link import VirtualLink
from scalesim.memory.manager import MemoryManager
from scalesim.model.adapters.layout import ALIGN, NUM_SLICES, LoraLayout, lora_sites
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.layers.rope import RopeConfig

RANKS = (8, 16, 64)
MAX_RANK = max(RANKS)  # what a slot is padded to
DTYPE_BYTES = 2
MOST_WASTE = 0.05
MIB = 1 << 20


@dataclass(frozen=True)
class Shape:
    """What a model's adapters and pages depend on."""

    name: str
    hidden: int
    wide: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int = 128

    def config(self) -> ModelConfig:
        return ModelConfig(
            architecture="LlamaForCausalLM", vocab_size=1, hidden_size=self.hidden,
            intermediate_size=self.wide, num_layers=self.layers, num_heads=self.heads,
            num_kv_heads=self.kv_heads, head_dim=self.head_dim, max_position=1, rms_eps=1e-6,
            rope=RopeConfig(),
        )  # fmt: skip

    def geometry(self) -> PageGeometry:
        return PageGeometry.choose(self.layers, self.kv_heads, self.head_dim, DTYPE_BYTES)

    def layout(self, rank: int) -> LoraLayout:
        """Of an adapter on all seven projections."""
        ranks = ((rank,) * NUM_SLICES,) * self.layers
        scales = ((1.0,) * NUM_SLICES,) * self.layers
        page_elems = self.geometry().page_bytes // DTYPE_BYTES
        return LoraLayout(lora_sites(self.config()), ranks, scales, page_elems)


SHAPES = (
    Shape("Llama-3.1-8B", 4096, 14336, 32, 32, 8),
    Shape("Qwen2.5-7B", 3584, 18944, 28, 28, 4),
    Shape("Qwen3-0.6B", 1024, 3072, 28, 16, 8),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--agents", type=int, default=1000, help="over one world prefix")
    parser.add_argument("--world", type=int, default=4096, help="tokens of that prefix")


def empty_share(layout: LoraLayout) -> float:
    """Of all pages but the last."""
    full = (layout.num_pages - 1) * layout.page_elems
    if full <= 0:
        return 0.0
    *_, width, _, offsets = layout.rows()[-1]
    last = int(offsets[-1]) + -(-width // ALIGN) * ALIGN - full
    return 1.0 - (layout.num_elements - last) / full


def run(options: argparse.Namespace) -> Report:
    report = Report("adapters")
    rows, worst = [], 0.0
    for shape in SHAPES:
        page_bytes = shape.geometry().page_bytes
        padded = shape.layout(MAX_RANK).num_elements * DTYPE_BYTES
        for rank in RANKS:
            layout = shape.layout(rank)
            weights, taken = layout.num_elements * DTYPE_BYTES, layout.num_pages * page_bytes
            waste = empty_share(layout)
            worst = max(worst, waste)
            rows.append([
                f"{shape.name}, rank {rank}", f"{page_bytes / 1024:.0f}", f"{weights / MIB:.1f}",
                str(layout.num_pages), f"{100 * waste:.2f}",
                f"{100 * (1 - weights / taken):.2f}", f"{padded / MIB:.1f}",
                f"{padded / taken:.2f}",
            ])  # fmt: skip
            report.figures[f"{shape.name}/{rank}"] = {
                "pages": layout.num_pages, "waste": waste, "weights_bytes": weights,
                "slot_bytes": padded,
            }  # fmt: skip
    columns = ["adapter on all projections", "page KiB", "weights MiB", "pages",
               "waste %, without the last page", "waste %, in all",
               f"a slot of rank {MAX_RANK}, MiB", "slot ÷ pages"]  # fmt: skip
    report.tables.append(table("Packing at true rank", columns, rows))
    report.verdict(
        "waste without the last page, worst", 100 * worst, most=100 * MOST_WASTE, unit=" %"
    )
    world(report, 50 if options.quick else options.agents, options.world)
    return report


def world(report: Report, agents: int, num_tokens: int) -> None:
    """Pages that KV takes when every agent has read the world and said a little."""
    rows = []
    used = {kind: kv_pages(kind, agents, num_tokens) for kind in ("private", "activated")}
    for kind, pages in used.items():
        gib = pages * SHAPES[0].geometry().page_bytes / 2**30
        rows.append([f"{kind} adapters", f"{pages:,}", f"{gib:,.1f}"])
    rows.append(["saved", f"{used['private'] - used['activated']:,}",
                 f"{used['private'] / used['activated']:.1f} ×"])  # fmt: skip
    title = f"{agents} agents over one prefix of {num_tokens} tokens"
    report.tables.append(table(title, ["", "pages of KV", f"GiB for {SHAPES[0].name}"], rows))
    report.figures["world"] = used


def kv_pages(kind: str, agents: int, num_tokens: int) -> int:
    """Run one turn of each agent through memory: world, 32 own tokens, 32 of output."""
    geometry = SHAPES[0].geometry()
    size, total = geometry.block_size, num_tokens + 64
    blocks = geometry.blocks_for(total)
    memory = MemoryManager(
        block_size=size, page_bytes=geometry.page_bytes,
        device_pages=agents * (blocks + 2) + 2, host_pages=0, num_rows=4,
        policy=policy_named("lru-recompute"), link=VirtualLink(geometry.page_bytes, 1e9),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    common = rng.integers(0, 1000, num_tokens).astype(np.int32)
    for agent in range(agents):
        digest = agent.to_bytes(16, "little")
        memory.add_adapter(
            AdapterContent(digest, 0, 1, None, InMemorySource(np.zeros((1, 1), np.uint8)))
        )
        use = adapter_spec(digest, 0, num_tokens + 8 if kind == "activated" else 0)
        memory.bind_adapter(agent, digest)
        own = rng.integers(0, 1000, 64).astype(np.int32)
        tokens = np.concatenate([common, own]).tobytes()
        lease = memory.acquire(agent, tokens, blocks, attachments=[use])
        assert lease is not None
        while not lease.is_ready:
            assert memory.residency.link.wait(60.0)
            memory.poll()
        memory.release(lease, tokens, total)
    return memory.device.num_used - agents  # without a page of each adapter
