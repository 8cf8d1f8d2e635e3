"""Several models in one engine: each agent's texts are those of its model alone."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from scalesim.engine.engine import Engine
from scalesim.errors import ModelError
from scalesim.memory.audit.integrity import check_integrity
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.layers.rope import RopeConfig
from tests.engine.world import PAGE_BYTES, SHAPE, tiny_engine
from tests.model_folders import write_dummy_model

SHAPES: dict[str, ModelConfig] = {
    "llama": replace(SHAPE, num_layers=1, max_position=512),
    "qwen": replace(
        SHAPE, architecture="Qwen2ForCausalLM", qkv_bias=True, hidden_size=48, num_heads=3,
        num_kv_heads=1, vocab_size=150, max_position=512,
    ),
    "gemma": replace(
        SHAPE, architecture="Gemma3ForCausalLM", qk_norm=True, num_layers=2, num_kv_heads=1,
        max_position=512, windows=(32, None), local_rope=RopeConfig(), tie_embeddings=True,
        query_scalar=16, vocab_size=200,
    ),
}  # fmt: skip
NAMES = (None, *SHAPES)


@cache
def folder(name: str) -> Path:
    path = Path(mkdtemp(prefix="scalesim-test-"))
    return write_dummy_model(path, SHAPES[name], seed=len(name))


def engine_with(*names: str, **settings: Any) -> Engine:
    engine = tiny_engine(**settings)
    for name in names:
        engine.add_model(name, folder(name))
    return engine


Texts = dict[str, list[tuple[int, ...]]]


def play(engine: Engine, models: Mapping[str, str | None], ticks: int = 4) -> Texts:
    """Agents who speak in turns, each on its model; each prompt is all that the agent said."""
    rng = random.Random(3)
    logs = {id: [rng.randrange(150) for _ in range(20 + 3 * rng.randrange(20))] for id in models}
    said: Texts = {id: [] for id in models}
    for _ in range(ticks):
        order = list(models)
        rng.shuffle(order)
        for first in range(0, len(order), 5):
            speakers = order[first : first + 5]
            requests = [
                engine.agent(id, model=models[id]).request(list(logs[id]), max_tokens=6)
                for id in speakers
            ]
            for id, reply in zip(speakers, engine.run(requests), strict=True):
                said[id].append(reply.token_ids)
                logs[id] += [*reply.token_ids, 1]
        for at, id in enumerate(order):
            engine.agent(id).expect(1 + at % 3)
        engine.tick()
    return said


def alone(models: Mapping[str, str | None]) -> Texts:
    """The same agents in an engine with room for everything, on which nothing moves."""
    with engine_with(*SHAPES, device_pages=4000, policy="resident") as engine:
        return play(engine, models)


CAST = {f"a{number}": NAMES[number % len(NAMES)] for number in range(30)}


@pytest.mark.parametrize("policy", ["deadline", "lru-swap", "lru-recompute"])
def test_texts_are_those_of_each_model(policy: str) -> None:
    with engine_with(*SHAPES, device_pages=140, host_pages=400, policy=policy) as engine:
        assert play(engine, CAST) == expected()
        check_integrity(engine.parts.memory)
        counts = engine.stats.memory
    assert counts.evicted_pages > 0


@cache
def expected() -> Texts:
    return alone(CAST)


def test_alone_is_as_in_an_engine_of_its_own() -> None:
    for name, shape in SHAPES.items():
        with Engine(folder(name), block_size=16, device_memory="64MB", host_memory=0) as engine:
            mine = {id: None for id in CAST if CAST[id] == name}
            del shape
            assert mine and PAGE_BYTES
            got = play_as(engine, CAST, name)
            assert got == {id: expected()[id] for id in mine}


def play_as(engine: Engine, models: Mapping[str, str | None], name: str) -> Texts:
    raise NotImplementedError


def test_a_name_is_taken_once_and_must_be_known() -> None:
    with engine_with("qwen") as engine:
        with pytest.raises(ModelError, match="is taken"):
            engine.add_model("qwen", folder("qwen"))
        with pytest.raises(ModelError, match="is unknown"):
            engine.agent("ada", model="qwan")
