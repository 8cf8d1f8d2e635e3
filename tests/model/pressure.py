"""Agents' texts on a model of any kind, under any policy and amount of device memory."""

from __future__ import annotations

from typing import Any

from scalesim.engine.build import parts_for, with_settings
from scalesim.engine.engine import Engine
from scalesim.memory.geometry import PageGeometry
from scalesim.model.checkpoint.loader import LoadedModel
from tests.engine.test_same_texts import check_empty
from tests.engine.world import BLOCK, TOKENIZER, Turns, said

TURNS = Turns(num_agents=6, rounds=3)
FULL = TURNS.num_agents * TURNS.pages_per_agent


def engine_of(loaded: LoadedModel, pages: int, policy: str) -> Engine:
    """With so many pages on the device; the host pool holds everything."""
    shape = loaded.config
    page = PageGeometry(
        shape.num_layers, shape.num_kv_heads, shape.head_dim, BLOCK, loaded.model.dtype.itemsize
    ).page_bytes
    config = with_settings(
        None,
        {"device": "cpu", "device_memory": page * (pages + 1), "host_memory": page * FULL,
         "block_size": BLOCK, "policy": policy, "digests": True},
    )  # fmt: skip
    return Engine(parts_for(loaded, config, tokenizer=TOKENIZER))


def texts(loaded: LoadedModel, pages: int, policy: str) -> list[Any]:
    """Tokens and digests of the logits of every reply."""
    with engine_of(loaded, pages, policy) as engine:
        replies = TURNS.play(engine, hint=lambda agent, turn: 1)
    check_empty(engine)
    return said(replies)


def check_texts(loaded: LoadedModel) -> None:
    """A quarter of the memory, and both ways to move what does not fit, change nothing."""
    unlimited = texts(loaded, FULL, "resident")
    for policy in ("deadline", "lru-swap"):
        assert texts(loaded, FULL // 4, policy) == unlimited, policy
