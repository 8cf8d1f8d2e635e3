"""``engine.why``: each cause is brought about, and named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scalesim.engine.engine import Engine
from scalesim.errors import UnknownAgentError
from scalesim.memory.prefetch.planner import BlockedBy
from scalesim.testing.tag_parts import tag_parts


class World:
    """Two agents of 20 blocks each on a pool that holds one and a half."""

    def __init__(self, **settings: Any) -> None:
        self.engine = Engine(tag_parts(**{"device_pages": 32, "host_pages": 200, **settings}))
        rng = np.random.default_rng(0)
        self.texts = {name: rng.integers(0, 512, 330).tolist() for name in ("ada", "bob")}
        for name in self.texts:
            self.engine.agent(name)

    def call(self, name: str) -> None:
        request = self.engine.agent(name).request(
            list(self.texts[name]), max_tokens=2, ignore_eos=True
        )
        call = self.engine.submit(request)
        while not call.done:
            self.engine.step()
        self.texts[name] += call.result().token_ids

    def cause(self, name: str) -> str | None:
        miss = self.engine.why(name)
        return None if miss is None else miss.cause


def test_a_first_call_and_a_hit_are_no_misses() -> None:
    world = World()
    world.call("ada")
    world.call("ada")
    assert world.cause("ada") is None
    with pytest.raises(UnknownAgentError, match="'eve'"):
        world.engine.why("eve")
    world.engine.close()


def test_no_hint() -> None:
    world = World(policy="lru-swap")
    for name in ("ada", "bob", "ada"):
        world.call(name)
    miss = world.engine.why("ada")
    assert miss is not None and miss.cause == "no hint"
    assert miss.load_tokens > 0 and miss.expected is None
    assert "expect()" in str(miss)
    world.engine.close()


def test_a_hint_for_later_than_the_call() -> None:
    world = World()
    world.call("ada")
    world.engine.expect("ada", 50)
    world.call("bob")
    world.engine.tick()
    world.call("ada")
    miss = world.engine.why("ada")
    assert miss is not None and (miss.cause, miss.expected, miss.tick) == ("hint late", 50.0, 1.0)
    world.engine.close()


def test_a_state_that_was_dropped() -> None:
    world = World(policy="lru-recompute", host_pages=0)
    for name in ("ada", "bob", "ada"):
        world.call(name)
    miss = world.engine.why("ada")
    assert miss is not None and (miss.cause, miss.load_tokens) == ("pool small", 0)
    world.engine.close()


def test_a_prompt_that_changed_and_where() -> None:
    world = World()
    world.call("ada")
    world.texts["ada"][100] ^= 1
    world.call("ada")
    miss = world.engine.why("ada")
    assert miss is not None and miss.cause == "prompt changed"
    assert 96 <= miss.token <= 100 and miss.lost_tokens >= 200
    assert "at token" in str(miss)
    world.engine.close()


def test_a_busy_link_and_a_pool_without_room() -> None:
    cases: list[tuple[BlockedBy, str]] = [("link", "link full"), ("pool", "pool small")]
    for blocked, cause in cases:
        world = World()
        world.call("ada")
        world.engine.expect("ada", 50)
        world.call("bob")
        world.engine.tick(to=50.0)
        world.engine.step()
        assert world.engine.parts.memory.misses.why_late(50.0, blocked) == cause
        world.engine.close()
