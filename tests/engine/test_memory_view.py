"""``Engine.memory``: who is where, and what may be asked of memory beside hints."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scalesim.engine.engine import Engine
from scalesim.engine.memory_view import MAX_PIN_S
from scalesim.errors import EngineClosedError, RequestError, UnknownAgentError
from scalesim.testing.tag_parts import tag_parts

BLOCKS = 10  # of each agent's prompt


class World:
    """Agents of ``BLOCKS`` blocks each, on a device pool that holds two and a half of them, with a
    clock of its own: each look at it takes 10 µs, and nothing else takes time."""

    def __init__(self, **settings: Any) -> None:
        self.later_s, looks = 0.0, itertools.count()
        parts = tag_parts(**{"device_pages": 26, "host_pages": 200, **settings})
        self.engine = Engine(replace(parts, time_s=lambda: 1e-5 * next(looks) + self.later_s))
        rng = np.random.default_rng(0)
        self.texts = {
            name: rng.integers(0, 512, BLOCKS * 16 + 1).tolist() for name in ("ada", "bob", "cy")
        }

    def call(self, *names: str) -> None:
        for name in names:
            agent = self.engine.agent(name)
            agent.generate(list(self.texts[name]), max_tokens=1, ignore_eos=True)

    def on_device(self, name: str) -> int:
        return self.engine.memory.view(name).pages.device

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()


def test_where_state_lies() -> None:
    with World() as world:
        world.engine.agent("ada")
        assert world.engine.memory.view("ada").pages.total == 0
        world.call("ada", "bob", "cy")
        views = {view.id: view for view in world.engine.memory.census().agents}
        assert views.keys() == {"ada", "bob", "cy"}
        assert all(view.pages.total >= BLOCKS for view in views.values())
        assert views["cy"].pages.device == BLOCKS + 1 and views["ada"].pages.host > 0
        assert world.engine.memory.view("ada") == views["ada"]
        assert all(view.open_calls == 0 and view.pinned_s == 0.0 for view in views.values())
        used = sum(view.pages.device for view in views.values())
        device = world.engine.memory.tiers["device"]
        assert device.num_pages - device.num_free == used
        with pytest.raises(UnknownAgentError, match="'eve'"):
            world.engine.memory.view("eve")


def test_what_agents_share_is_told_of_each() -> None:
    with World() as world:
        world.call("ada")
        world.engine.fork("ada", "twin")
        pages = {view.id: view.pages for view in world.engine.memory.census().agents}
        assert pages["twin"].device == BLOCKS and pages["ada"].device == BLOCKS + 1
        found = asyncio.run(world.engine.memory.agents_under_async(world.texts["ada"]))
        assert sorted(map(str, found)) == ["ada", "twin"]
        assert asyncio.run(world.engine.memory.agents_under_async(world.texts["ada"][:15])) == []
        assert asyncio.run(world.engine.memory.agents_under_async(world.texts["bob"])) == []


def test_a_pin_keeps_and_ends() -> None:
    with World() as world:
        world.call("ada")
        world.engine.memory.pin("ada", 10.0)
        world.call("bob", "cy", "bob", "cy")
        assert world.on_device("ada") == BLOCKS + 1
        assert world.engine.memory.view("ada").pinned_s > 9.0
        world.later_s = 11.0
        world.call("bob", "cy", "bob", "cy")
        assert world.engine.memory.view("ada").pinned_s == 0.0
        assert world.on_device("ada") < BLOCKS


def test_a_pin_brings_back() -> None:
    with World() as world:
        world.call("ada", "bob", "cy", "bob", "cy")
        assert world.on_device("ada") < BLOCKS
        world.engine.memory.pin("ada", 10.0)
        while world.on_device("ada") < BLOCKS:
            pass  # each look is a step of the engine's thread
        assert world.engine.stats.prefetched_bytes > 0
        world.engine.memory.release(["ada"])
        assert world.engine.memory.view("ada").pinned_s == 0.0


def test_pins_of_everything_hang_nobody() -> None:
    with World() as world:
        world.call("ada", "bob", "cy")
        world.engine.memory.pin(["ada", "bob", "cy"], MAX_PIN_S)
        whole = np.random.default_rng(1).integers(0, 512, 25 * 16).tolist()
        reply = world.engine.agent("dee").generate(whole, max_tokens=8, ignore_eos=True)
        assert len(reply.token_ids) == 8


def test_who_is_demoted_leaves_first_until_it_calls() -> None:
    for is_demoted in (True, False):
        with World() as world:
            world.call("ada", "bob")
            world.engine.expect({"ada": 1.0, "bob": 2.0})
            if is_demoted:
                world.engine.memory.demote("ada")
            world.call("cy")
            assert (world.on_device("ada") < world.on_device("bob")) == is_demoted
            world.call("ada")
            assert world.engine.memory.view("ada").pages.next_use != 2.0**52
            score = world.engine.source_scores()["declared"]
            assert score.trust == 1.0 or not is_demoted


def test_a_hint_calls_back_who_was_demoted() -> None:
    with World() as world:
        world.call("ada")
        world.engine.expect("ada", 3.0)
        world.engine.memory.demote("ada")
        assert world.engine.memory.view("ada").pages.next_use == 2.0**52
        world.engine.expect("ada", 3.0)
        assert world.engine.memory.view("ada").pages.next_use == 3.0
        world.engine.memory.demote("ada")
        world.engine.memory.release("ada")
        assert world.engine.memory.view("ada").pages.next_use == 3.0
        world.engine.memory.demote("ada")
        world.engine.wake("ada")
        assert world.engine.memory.view("ada").pages.next_use == 0.0


def test_what_is_refused() -> None:
    with World() as world:
        world.engine.agent("ada")
        for seconds in (0, -1, MAX_PIN_S + 1, float("nan"), "1"):
            with pytest.raises(RequestError, match="seconds="):
                world.engine.memory.pin("ada", seconds)  # type: ignore[arg-type]
        for ask in (world.engine.memory.release, world.engine.memory.demote):
            with pytest.raises(UnknownAgentError):
                ask(["ada", "eve"])
    with pytest.raises(EngineClosedError):
        world.engine.memory.census()


def test_who_is_forgotten_is_pinned_no_more() -> None:
    with World() as world:
        world.call("ada")
        world.engine.memory.pin("ada", 10.0)
        world.engine.forget("ada")
        world.engine.agent("ada")
        assert world.engine.memory.view("ada") == ("ada", (0, 0, 0, None, 0), 0, 0.0)


def test_hints_by_agent_and_on_the_clock() -> None:
    with World() as world:
        world.call("ada", "bob")
        world.engine.tick(to=5)
        world.engine.expect({"ada": 7.0, "bob": 9.0}, absolute=True, confidence={"ada": 0.5})
        pages = {view.id: view.pages for view in world.engine.memory.census().agents}
        assert (pages["ada"].next_use, pages["bob"].next_use) == (7.0, 9.0)


def test_counts_by_name() -> None:
    with World() as world:
        world.call("ada", "bob", "cy", "ada", "ada")
        stats = world.engine.stats
        assert stats.lookups == 5 and stats.hits == 1 and stats.waits == 1
        assert stats.loaded_bytes > 0 and stats.saved_bytes > 0
        assert stats.loaded_bytes % world.engine.memory.page_bytes == 0
        assert world.engine.memory.queued_bytes == {"in": 0, "out": 0}
