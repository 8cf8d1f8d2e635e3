"""The demo's set-up, the same for every policy: the random model and the two pools."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from scalesim.cli.options import DemoOptions, ModelSize
from scalesim.cli.play import Play
from scalesim.cli.world import World, WorldConfig
from scalesim.config import EngineConfig, SchedulerConfig
from scalesim.engine.build import parts_for
from scalesim.engine.engine import Engine
from scalesim.memory.geometry import PageGeometry
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.checkpoint.dummy import dummy_tensors
from scalesim.model.checkpoint.loader import LoadedModel
from scalesim.model.checkpoint.weights import assemble, num_elements
from scalesim.model.layers.native import NativeModel
from scalesim.model.layers.rope import RopeConfig
from scalesim.model.text.tokenizer import ByteTokenizer

SHAPES: dict[ModelSize, tuple[int, int, int, int, int]] = {
    # layers, hidden, query heads, KV heads, head_dim
    "tiny": (2, 64, 4, 2, 16),
    "small": (4, 128, 4, 2, 64),
    "large": (4, 256, 8, 2, 64),
}


def model_config(size: ModelSize, max_len: int) -> ModelConfig:
    """A Llama over bytes, with grouped-query attention as in current models."""
    layers, hidden, heads, kv_heads, head_dim = SHAPES[size]
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=ByteTokenizer().vocab_size,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4 // 16 * 16,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position=max_len,
        rms_eps=1e-6,
        rope=RopeConfig(),
    )


@dataclass(frozen=True, slots=True)
class Stage:
    """The model and the sizes of the pools. ``usual_pages`` hold an agent with a usual memory; the
    device pool is sized by that."""

    world: WorldConfig
    model: LoadedModel
    num_params: int
    page_bytes: int
    usual_pages: int
    device_bytes: int
    host_bytes: int

    @property
    def state_bytes(self) -> int:
        """Bytes of the state of all agents."""
        return self.world.agents * self.usual_pages * self.page_bytes

    @staticmethod
    def build(options: DemoOptions, folder: Path) -> Stage:
        """Make the model and size the pools. ``options.resident`` agents fit into the device pool;
        the host pool holds all agents, with forgotten text that is not dropped yet. ``folder`` is
        empty: the model has no files."""
        world = WorldConfig(agents=options.agents, seed=options.seed)
        shape = model_config(options.model, world.max_len)
        weights = assemble(shape, dummy_tensors(shape, options.seed, torch.float32).pop)
        geometry = PageGeometry.choose(shape.num_layers, shape.num_kv_heads, shape.head_dim, 4)
        usual = geometry.blocks_for(world.usual_len)
        longest = geometry.blocks_for(world.max_len)
        pages = max(options.resident * usual, longest) + 1  # and the null page
        return Stage(
            world=world,
            model=LoadedModel(shape, NativeModel(shape, weights), folder),
            num_params=num_elements(shape),
            page_bytes=geometry.page_bytes,
            usual_pages=usual,
            device_bytes=pages * geometry.page_bytes,
            host_bytes=2 * options.agents * longest * geometry.page_bytes,
        )

    def config(self, policy: str) -> EngineConfig:
        return EngineConfig(
            device_memory=self.device_bytes,
            host_memory=self.host_bytes,
            policy=policy,
            digests=True,
            seed=self.world.seed,
            scheduler=SchedulerConfig(max_num_seqs=16, max_num_batched_tokens=512),
        )

    @contextmanager
    def play(self, policy: str) -> Iterator[Play]:
        """The world at its beginning, on a fresh engine."""
        parts = parts_for(self.model, self.config(policy), tokenizer=ByteTokenizer())
        with Engine(parts) as engine:
            yield Play(engine, World(self.world), policy, self.page_bytes)
