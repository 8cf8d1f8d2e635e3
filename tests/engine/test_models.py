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
import torch

from scalesim.engine.engine import Engine
from scalesim.errors import AdapterError, ModelError, RequestError
from scalesim.model.checkpoint.config import ModelConfig
from scalesim.model.layers.rope import RopeConfig
from tests.engine.world import SHAPE, tiny_engine
from tests.inside import check_memory
from tests.model.adapter_folders import write_adapter
from tests.model_folders import write_dummy_model

SHAPES: dict[str, ModelConfig] = {
    "llama": replace(SHAPE, num_layers=3, max_position=512),
    "qwen": replace(
        SHAPE, architecture="Qwen2ForCausalLM", qkv_bias=True, hidden_size=48, num_heads=3,
        num_kv_heads=1, vocab_size=150, max_position=512,
    ),
    "gemma": replace(
        SHAPE, architecture="Gemma3ForCausalLM", qk_norm=True, num_kv_heads=1, head_dim=20,
        max_position=512, windows=(32, None), local_rope=RopeConfig(), tie_embeddings=True,
        query_scalar=16, vocab_size=200,
    ),
}  # fmt: skip
BLOCK_SIZES = {None: 32, "llama": 16, "qwen": 64, "gemma": 48}
"""Tokens a page: llama's KV is larger than that of the engine's own model, and gemma's leaves the
end of each page unused."""
CAST = {f"a{number}": (None, *SHAPES)[number % 4] for number in range(32)}
"""The model of each agent; every other agent has an adapter, and keeps a value."""
GREEDY: dict[str, Any] = {"max_tokens": 5, "temperature": 0.0}
POLICIES = ("deadline", "lru-swap", "lru-recompute")
Texts = dict[str, list[tuple[int, ...]]]


@cache
def folder(name: str) -> Path:
    path = Path(mkdtemp(prefix="scalesim-test-"))
    return write_dummy_model(path / "model", SHAPES[name], seed=len(name))


@cache
def adapter(name: str | None) -> Path:
    path = Path(mkdtemp(prefix="scalesim-test-"))
    return write_adapter(path / "adapter", SHAPE if name is None else SHAPES[name], rank=2, seed=5)


def engine_with(
    *names: str, device_pages: int = 200, host_pages: int = 200, **settings: Any
) -> Engine:
    """An engine whose pools hold so many pages of 32 tokens of its own model."""
    engine = tiny_engine(
        block_size=BLOCK_SIZES[None], device_pages=2 * device_pages + 1,
        host_pages=2 * host_pages, **settings,
    )  # fmt: skip
    for name in names:
        engine.add_model(name, folder(name))
    return engine


class Play:
    """Agents who speak in turns; each prompt is all that its agent said. What an agent says
    depends on no other agent."""

    def __init__(self, cast: Mapping[str, str | None], is_own: bool = False) -> None:
        self.cast, self.is_own = cast, is_own
        self.rng = random.Random(3)
        self.logs = {
            id: [random.Random(id).randrange(150) for _ in range(20 + 2 * (int(id[1:]) % 9))]
            for id in cast
        }

    def tick(self, engine: Engine, said: Texts) -> None:
        order = list(self.cast)
        self.rng.shuffle(order)
        for first in range(0, len(order), 5):
            speakers = order[first : first + 5]
            requests = [
                self.agent(engine, id).request(list(self.logs[id]), max_tokens=5) for id in speakers
            ]
            for id, reply in zip(speakers, engine.run(requests), strict=True):
                said.setdefault(id, []).append(reply.token_ids)
                self.logs[id] += [*reply.token_ids, 1]
        for at, id in enumerate(order):
            engine.agent(id).expect(1 + at % 3)
        engine.tick()

    def agent(self, engine: Engine, id: str) -> Any:
        name = self.cast[id]
        agent = engine.agent(id, model=None if self.is_own else name)
        if int(id[1:]) % 8 < 4 and agent.adapter is None:
            agent.adapter = adapter(name)
        return agent


def play(engine: Engine, cast: Mapping[str, str | None] = CAST, ticks: int = 3) -> Texts:
    found, said = Play(cast), Texts()
    for _ in range(ticks):
        found.tick(engine, said)
    return said


@cache
def expected() -> Texts:
    """The texts of an engine with room for everything, on which nothing moves."""
    with engine_with(*SHAPES, device_pages=2000, policy="resident") as engine:
        return play(engine)


@pytest.mark.parametrize("policy", POLICIES)
def test_texts_are_those_of_an_engine_with_room(policy: str) -> None:
    """Weights, adapters, KV and values in a pool that holds less than half of them."""
    with engine_with(*SHAPES, device_pages=64, host_pages=200, policy=policy) as engine:
        values = {}
        if policy != "lru-recompute":
            for id in list(CAST)[::3]:
                values[id] = torch.arange(50) + len(id)
                engine.agent(id).state["memory"] = values[id]
        held = {found.name: found.block_size for found in engine.models.list()}
        assert held | {None: engine.parts.memory.block_size} == BLOCK_SIZES
        assert play(engine) == expected()
        check_memory(engine)
        for id, value in values.items():
            assert torch.equal(engine.agent(id).state["memory"], value)
        counts = engine.parts.memory.counters
        assert counts.evicted_pages > 150
    assert engine.stats.failed == 0


@pytest.mark.parametrize("name", SHAPES)
def test_a_model_says_what_it_says_in_an_engine_of_its_own(name: str) -> None:
    cast = {id: model for id, model in CAST.items() if model == name}
    with Engine(folder(name), block_size=16, device_memory="64MB", host_memory=0) as engine:
        alone, said = Play(cast, is_own=True), Texts()
        for _ in range(3):
            alone.tick(engine, said)
    assert said == {id: expected()[id] for id in cast}


def test_texts_with_sampling_scores_and_masks() -> None:
    """Options of a request keep to its own model, also where vocabularies differ in one step."""

    def replies(engine: Engine) -> list[Any]:
        requests = []
        for number, name in enumerate((None, *SHAPES) * 2):
            agent = engine.agent(f"b{number}", model=name)
            options: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_tokens": 6}
            if number % 2:
                options |= {"logprobs": 2, "prompt_logprobs": 1, "presence_penalty": 0.5}
            else:
                options |= {"logit_bias": {7: 2.0}, "min_p": 0.01, "frequency_penalty": 0.2}
            requests.append(agent.request([number + 1, 5, 9, 12] * 6, **options))
        found: list[Any] = []
        for reply in engine.run(requests):
            scores = None if reply.logprobs is None else reply.logprobs.logprobs.tolist()
            found.append((reply.token_ids, scores))
        return found

    with engine_with(*SHAPES) as engine:
        together = replies(engine)
    with engine_with(*SHAPES, max_num_seqs=1) as engine:
        assert replies(engine) == together
    assert sum(scores is not None for _, scores in together) == 4


def test_embeddings_have_the_width_of_their_model() -> None:
    with engine_with(*SHAPES) as engine:
        requests = [
            replace(engine.agent(f"c{at}", model=name).request([1, 2, 3, at + 1]), pooling="mean")
            for at, name in enumerate((None, *SHAPES))
        ]
        replies = engine.run(requests)
        widths = [len(reply.embedding) for reply in replies if reply.embedding is not None]
    assert widths == [64, 64, 48, 64]


def test_weights_leave_and_come_back() -> None:
    """More models than the device holds: each call brings its own back."""
    with engine_with("llama", "qwen", device_pages=44, host_pages=50) as engine:
        pages = {found.name: found.num_pages for found in engine.models.list()}
        assert sum(pages.values()) > 44
        first = [
            engine.agent(f"d{at}", model=name).generate([1, 2, 3], **GREEDY).token_ids
            for at, name in enumerate(("llama", "qwen"))
        ]
        for _ in range(3):
            for at, name in enumerate(("llama", "qwen")):
                again = engine.agent(f"d{at}", model=name).generate([1, 2, 3], **GREEDY)
                assert again.token_ids == first[at]
        check_memory(engine)
        assert engine.parts.memory.counters.demand_loads >= 6


def test_files_that_change_end_the_calls_that_need_them(tmp_path: Path) -> None:
    """Weights that are nowhere else are read again: other content is refused, and nobody else's
    calls are touched."""
    where = write_dummy_model(tmp_path / "model", SHAPES["qwen"], seed=1)
    with engine_with("llama", device_pages=44, host_pages=0, policy="lru-recompute") as engine:
        engine.add_model("own", where)
        said = engine.agent("a", model="own").generate([1, 2, 3], **GREEDY).token_ids
        write_dummy_model(where, SHAPES["qwen"], seed=2)
        other = engine.agent("b", model="llama")
        assert other.generate([1, 2, 3], **GREEDY).token_ids  # displaces them
        with pytest.raises(ModelError, match="files changed"):
            engine.agent("a").generate([1, 2, 3], **GREEDY)
        assert other.generate([1, 2, 3], **GREEDY).token_ids
        write_dummy_model(where, SHAPES["qwen"], seed=1)
        assert engine.agent("a").generate([1, 2, 3], **GREEDY).token_ids == said


def test_an_agent_changes_its_model() -> None:
    with engine_with("llama", "qwen") as engine:
        said = {
            name: engine.agent(f"e{name}", model=name).generate([5] * 20, **GREEDY).token_ids
            for name in (None, "llama", "qwen")
        }
        agent = engine.agent("f")
        for name in ("qwen", None, "llama", "qwen"):
            agent.model = name
            assert agent.model == name
            assert agent.generate([5] * 20, **GREEDY).token_ids == said[name]
        other = agent.fork("g")
        assert other.model == "qwen"
        assert other.generate([5] * 20, **GREEDY).token_ids == said["qwen"]
        with engine.fork_world() as world:
            same = world.agent("f")
            assert same.model == "qwen"
            assert same.generate([5] * 20, **GREEDY).token_ids == said["qwen"]
        engine.forget(["f", "g"])
        check_memory(engine)


def test_what_is_refused() -> None:
    with engine_with("qwen", device_pages=80) as engine:
        with pytest.raises(ModelError, match="is taken"):
            engine.add_model("qwen", folder("qwen"))
        with pytest.raises(ModelError, match="'qwan' is unknown"):
            engine.agent("ada", model="qwan")
        with pytest.raises(ModelError, match="is unknown"):
            engine.agent("ada").model = "llama"
        agent = engine.agent("ada", model="qwen")
        with pytest.raises(RequestError, match="vocabulary, 0 to 149"):
            agent.generate([150])
        engine.adapters.add("own", adapter(None))
        with pytest.raises(AdapterError, match="and the call runs on"):
            agent.generate([1], adapter="own", max_tokens=1)
        with pytest.raises(ModelError, match="raise device_memory"):
            engine.add_model("llama", big())
        with pytest.raises(ModelError, match="make the engine of this model"):
            engine.add_model("wide", wide())
        assert agent.generate([1, 2], max_tokens=1).token_ids


@cache
def big() -> Path:
    path = Path(mkdtemp(prefix="scalesim-test-"))
    return write_dummy_model(path / "model", replace(SHAPE, vocab_size=3000))


@cache
def wide() -> Path:
    path = Path(mkdtemp(prefix="scalesim-test-"))
    return write_dummy_model(path / "model", replace(SHAPE, num_layers=5))
