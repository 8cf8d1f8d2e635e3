"""A tiny byte-level model, engines of any size on it, and agents that take turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np

from scalesim.distance.estimates import Source
from scalesim.engine.build import parts_for, with_settings
from scalesim.engine.engine import Engine
from scalesim.memory.geometry import PageGeometry
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.checkpoint.loader import LoadedModel, load_model
from scalesim.model.layers.rope import RopeConfig
from scalesim.model.text.tokenizer import ByteTokenizer
from scalesim.requests.reply import Reply
from tests.model_folders import write_dummy_model

BLOCK = 16
TOKENIZER = ByteTokenizer()
SHAPE = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=TOKENIZER.vocab_size,
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_position=4096,
    rms_eps=1e-5,
    rope=RopeConfig(),
)
PAGE_BYTES = PageGeometry(SHAPE.num_layers, SHAPE.num_kv_heads, SHAPE.head_dim, BLOCK, 4).page_bytes


@cache
def tiny_model() -> LoadedModel:
    folder = Path(mkdtemp(prefix="scalesim-test-"))
    write_dummy_model(folder, SHAPE, seed=1)
    return load_model(folder)


def tiny_engine(
    *,
    device_pages: int = 400,
    host_pages: int = 400,
    model: LoadedModel | None = None,
    sources: Sequence[Source] = (),
    **settings: Any,
) -> Engine:
    """An engine whose pools hold exactly so many pages of 16 tokens."""
    settings = {
        "device_memory": PAGE_BYTES * (device_pages + 1),  # and the null page
        "host_memory": PAGE_BYTES * host_pages,
        "block_size": BLOCK,
        "integrity": "raise",
        **settings,
    }
    config = with_settings(None, settings)
    parts = parts_for(model or tiny_model(), config, tokenizer=TOKENIZER)
    return Engine(parts, sources=sources)


@dataclass(frozen=True)
class Turns:
    """Agents with private prefixes of different lengths who speak ``rounds`` times, all in each
    step."""

    num_agents: int = 10
    rounds: int = 3
    prefix_len: int = 90
    new_len: int = 10
    output_len: int = 14
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()  # ends a turn while its next step is in flight

    @property
    def pages_per_agent(self) -> int:
        longest = self.prefix_len + self.num_agents + self.rounds * (self.new_len + self.output_len)
        return -(-longest // BLOCK)

    def play(self, engine: Engine, hint: Callable[[int, int], float] | None = None) -> list[Reply]:
        """Every reply, round by round."""
        rng = np.random.default_rng(self.seed)
        histories = [
            rng.integers(0, 256, self.prefix_len + agent).tolist()
            for agent in range(self.num_agents)
        ]
        agents = [engine.agent(index) for index in range(self.num_agents)]
        replies: list[Reply] = []
        for turn in range(self.rounds):
            requests = []
            for agent, history in zip(agents, histories, strict=True):
                history += rng.integers(0, 256, self.new_len).tolist()
                requests.append(
                    agent.request(
                        list(history),
                        max_tokens=self.output_len,
                        ignore_eos=True,
                        stop_token_ids=self.stop_token_ids,
                    )
                )
            for agent, reply in zip(agents, engine.run(requests), strict=True):
                assert isinstance(reply, Reply)
                histories[int(agent.id)] += reply.token_ids
                replies.append(reply)
                if hint is not None:
                    agent.expect(hint(int(agent.id), turn))
            engine.tick()
        return replies


def said(replies: list[Reply]) -> list[tuple[tuple[int, ...], int]]:
    """What must not depend on memory: tokens, and the hash of every step's logits."""
    return [(reply.token_ids, reply.digest) for reply in replies]
