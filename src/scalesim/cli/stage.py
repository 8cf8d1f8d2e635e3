"""The demo's set-up, the same for every policy: the model, the two pools and the paced link."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import scalesim.village
from scalesim.cli.options import BLOCKING_SWAP, DemoOptions
from scalesim.cli.pace import Pace, hardware_named, prefill_rate
from scalesim.cli.play import Play
from scalesim.config import EngineConfig, SchedulerConfig
from scalesim.engine.build import parts_for
from scalesim.engine.engine import Engine
from scalesim.errors import ConfigError
from scalesim.memory.geometry import PageGeometry
from scalesim.memory.links.blocking_link import BlockingLink
from scalesim.memory.links.copy_threads import CopyThreads
from scalesim.memory.links.link import innermost
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.checkpoint.loader import LoadedModel, load_model
from scalesim.model.checkpoint.weights import num_elements
from scalesim.village.world import Village

OWN_MODEL = Path(scalesim.village.__file__).parent / "model"
_GROWTH = 1.9  # a chat is usually so many times as long as its first question
_MEASURED = 9  # chats whose prefill is measured


@dataclass(frozen=True, slots=True)
class Stage:
    """The model and the sizes of the pools. ``usual_pages`` hold an agent with a usual memory; the
    device pool is sized by that. ``longest_pages`` hold the longest memory."""

    agents: int
    seed: int
    model: LoadedModel
    num_params: int
    page_bytes: int
    usual_pages: int
    longest_pages: int
    device_bytes: int
    pace: Pace
    voices: tuple[Path, ...] = ()  # folders of adapters

    @property
    def state_bytes(self) -> int:
        """Bytes of the state of all agents."""
        return self.agents * self.usual_pages * self.page_bytes

    @property
    def host_bytes(self) -> int:
        """The host pool holds all agents, with forgotten text that is not dropped yet."""
        return 2 * self.agents * self.longest_pages * self.page_bytes

    @staticmethod
    def build(options: DemoOptions) -> Stage:
        """Load the model, measure its prefill, and size the pools. ``options.resident`` agents fit
        into the device pool. Raises ``ConfigError``."""
        folder = OWN_MODEL if options.model is None else Path(options.model)
        voices = voices_of(folder) if options.voices else ()
        loaded = load_model(folder, place="cpu", model_impl="native")
        shape = loaded.config
        assert isinstance(shape, ModelConfig)
        geometry = PageGeometry.choose(
            shape.num_layers, shape.num_kv_heads, shape.head_dim, loaded.model.dtype.itemsize
        )
        village = Village(options.agents, options.seed)
        chats = [village.messages(question) for question in village.round()[:_MEASURED]]
        memory = geometry.page_bytes * geometry.blocks_for(shape.max_position) * 4
        config = EngineConfig(device="cpu", device_memory=memory, host_memory=0)
        with Engine(parts_for(loaded, config)) as engine:
            here = prefill_rate(engine, chats)
            first_len = len(engine.parts.model.token_ids(chats[0]))
        usual = geometry.blocks_for(math.ceil(first_len * _GROWTH))
        longest = geometry.blocks_for(min(3 * first_len, shape.max_position))
        pages = max(options.resident * usual, longest) + 1  # and the null page
        token_bytes = geometry.page_bytes / geometry.block_size
        return Stage(
            agents=options.agents,
            seed=options.seed,
            model=loaded,
            num_params=num_elements(shape),
            page_bytes=geometry.page_bytes,
            usual_pages=usual,
            longest_pages=longest,
            device_bytes=pages * geometry.page_bytes,
            pace=Pace(hardware_named(options.hardware), here, token_bytes, options.link),
            voices=voices,
        )

    def config(self, policy: str) -> EngineConfig:
        return EngineConfig(
            device="cpu",
            device_memory=self.device_bytes,
            host_memory=self.host_bytes,
            link_bandwidth=self.pace.bytes_per_s,
            policy=policy,
            digests=True,
            seed=self.seed,
            scheduler=SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=512),
        )

    @contextmanager
    def play(self, policy: str, at_once: int | None = None) -> Iterator[Play]:
        """The village at its beginning, on a fresh engine. ``policy``: an engine's, or
        ``BLOCKING_SWAP``. ``at_once``: as of ``Play``."""
        blocks = policy == BLOCKING_SWAP
        config = self.config("lru-swap" if blocks else policy)
        parts = parts_for(self.model, config, around=BlockingLink if blocks else None)
        link = innermost(parts.link)
        assert isinstance(link, CopyThreads), link
        with Engine(replace(parts, time_s=link.time_s)) as engine:
            village = Village(self.agents, self.seed)
            try:
                yield Play(engine, link, village, policy, self.page_bytes, self.voices, at_once)
            finally:
                link.resume()  # the engine waits for copies that have begun


def voices_of(folder: Path) -> tuple[Path, ...]:
    """The adapters that come with a model. Raises ``ConfigError`` if there are none."""
    found = sorted(each.parent for each in folder.glob("voices/*/adapter_config.json"))
    if not found:
        raise ConfigError(f"--voices: {folder} has no adapters in a folder voices; leave it out")
    return tuple(found)
