"""The host tier: what it evicts, what it refuses, and what it learns from requests alone."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalesim.order.board import CallBoard
from scalesim.vllm.host_tier import HostTier
from tests.order.boards import board_where_prompts_go_on
from tests.vllm.doubles import Chunk, Context

DEPTH = 3


class Manager:
    """As vLLM's ``CPUOffloadingManager`` uses its policy."""

    def __init__(self, tier: HostTier, *, filtered: bool = True) -> None:
        self.tier, self._filtered = tier, filtered
        self._free = list(range(tier.cache_capacity))

    def store(self, keys: Sequence[Any], context: Context) -> bool:
        """Store ``keys``; ``False`` if that is refused."""
        wanted = self.tier.admitted(list(keys), context) if self._filtered else list(keys)
        new = [key for key in wanted if self.tier.get(key) is None]
        if not new:
            return True
        self.tier.on_store_miss(new, context)
        if (short := len(new) - len(self._free)) > 0:
            evicted = self.tier.evict(short, set(wanted))
            if evicted is None:
                return False
            assert len(evicted) == short
            self._free += [chunk.chunk_id for _, chunk in evicted]
        for key in new:
            self.tier.insert(key, Chunk(self._free.pop()))
        for key in new:
            self.tier.get(key).ref_cnt = 0
            self.tier.mark_evictable(key)
        return True

    def check(self) -> None:
        ids = [chunk.chunk_id for chunk in self.tier.chunks.values()]
        assert sorted([*ids, *self._free]) == list(range(self.tier.cache_capacity))
        assert self.tier.num_free == len(self._free)


def keys_of(agent: int) -> list[Any]:
    return [(agent, depth) for depth in range(DEPTH)]


def said(agent: int, now: float, soon: float) -> dict[str, Any]:
    hint = {"agent": agent, "now": now}
    return {"scalesim": hint if math.isinf(soon) else hint | {"next": soon}}


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["cycle", "permutations"])
def test_alone_it_finds_what_belady_finds(kind: str, seed: int, filtered: bool) -> None:
    """Belady with the choice not to store: then the tier holds, after each call, the agents that
    call soonest."""
    rng, num_agents, room = random.Random(seed), 12, 5
    rounds = [list(range(num_agents)) for _ in range(6)]
    for each in rounds if kind == "permutations" else ():
        rng.shuffle(each)
    calls = [agent for each in rounds for agent in each]
    tier = HostTier(room * DEPTH)
    manager, found, best = Manager(tier, filtered=filtered), 0, 0
    ideal: set[int] = set()
    for now, agent in enumerate(calls):
        keys = keys_of(agent)
        found += sum(tier.get(key) is not None for key in keys)
        best += DEPTH * (agent in ideal)
        later = calls[now + 1 :]
        ahead = {each: later.index(each) if each in later else math.inf for each in ideal | {agent}}
        ideal = set(sorted(ahead, key=lambda each: (ahead[each], each))[:room])
        soon = now + 1 + ahead[agent]
        context = Context(f"r{now}", said(agent, now, soon if soon < math.inf else 1e9))
        context.depths = {key: depth for depth, key in enumerate(keys)}
        manager.store(keys, context)
        tier.on_request_finished([keys], set(), set(), context)
        manager.check()
    assert found >= 0.97 * best > 0
    assert (tier.num_refused > 0) == (tier.num_evicted < len(calls) * DEPTH - room * DEPTH)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["store", "load", "end", "finish", "clear"]),
            st.integers(0, 5),
            st.integers(1, 3),
        ),
        max_size=60,
    )
)
def test_no_chunk_that_is_read_leaves(acts: list[tuple[str, int, int]]) -> None:
    tier = HostTier(7)
    manager = Manager(tier)
    reading: dict[Any, int] = {}
    for seq, (act, agent, count) in enumerate(acts):
        if act == "store":
            context = Context(f"{seq}", said(agent, seq, seq + count * 5.0))
            manager.store(keys_of(agent)[:count], context)
            tier.on_request_finished([keys_of(agent)[:count]], set(), set(), context)
        elif act == "load":
            for key in keys_of(agent)[:count]:
                chunk = tier.get(key)
                if chunk is None:
                    continue
                if not chunk.ref_cnt:
                    tier.mark_non_evictable(key)
                chunk.ref_cnt += 1
                reading[key] = reading.get(key, 0) + 1
        elif act == "end":
            for key in [key for key in reading if key[0] == agent]:
                reading[key] -= 1
                chunk = tier.get(key)
                chunk.ref_cnt -= 1
                if not chunk.ref_cnt:
                    tier.mark_evictable(key)
                    del reading[key]
        elif act == "clear" and not reading:
            tier.clear()
            manager = Manager(tier)
        assert all(tier.get(key) is not None for key in reading)
        manager.check()
    tier.clear()
    assert len(tier.board.keys) == 0  # no call is open


def joined(capacity: int, device: set[Any]) -> tuple[HostTier, Manager]:
    tier = HostTier(capacity)
    tier.join(board_where_prompts_go_on(), lambda: device)
    tier.board.keys.watch(lambda: device)
    return tier, Manager(tier)


def save(tier: HostTier, manager: Manager, keys: Sequence[Any]) -> list[Any]:
    """Save what leaves the device, as far as it finds room; returns that."""
    worth = tier.make_room(keys)
    if worth:
        assert manager.store(worth, Context("save"))
    tier.put_back()
    return worth


def call(tier: HostTier, agent: int, soon: float) -> None:
    tier.board.begin(f"call of {agent}", agent)
    tier.board.used(f"call of {agent}", keys_of(agent))
    tier.board.expect({agent: soon})
    tier.board.end(f"call of {agent}")


def test_behind_a_device_a_spare_copy_leaves_first() -> None:
    device = {key for agent in range(4) for key in keys_of(agent)}
    tier, manager = joined(3 * DEPTH, device)
    for agent in range(3):
        call(tier, agent, 10.0 * (agent + 1))
        assert manager.store(keys_of(agent), Context("save"))
    call(tier, 3, 5.0)
    device.difference_update(keys_of(0), keys_of(2))
    tier.device_changed([*keys_of(0), *keys_of(2)])
    assert save(tier, manager, keys_of(3)) == keys_of(3)
    manager.check()
    assert {key[0] for key in tier.chunks} == {0, 2, 3}  # agent 1 is on the device


def test_behind_a_device_what_was_computed_takes_only_what_is_free() -> None:
    device = {key for agent in range(3) for key in keys_of(agent)}
    tier, manager = joined(DEPTH + 1, device)
    for agent in range(2):
        call(tier, agent, 10.0)
        assert manager.store(keys_of(agent), Context("store"))
    assert set(tier.chunks) == {*keys_of(0), (1, 0)}
    assert tier.num_refused == DEPTH - 1


def test_behind_a_device_a_save_displaces_what_is_used_later_and_nothing_else() -> None:
    device = {key for agent in range(3) for key in keys_of(agent)}
    tier, manager = joined(DEPTH, device)
    call(tier, 0, 20.0)
    assert manager.store(keys_of(0), Context("save"))
    device.clear()
    tier.device_changed(keys_of(0))
    device.update(keys_of(1), keys_of(2))
    call(tier, 1, 30.0)
    assert save(tier, manager, keys_of(1)) == []
    call(tier, 2, 10.0)
    assert save(tier, manager, [(2, 0)]) == [(2, 0)]
    assert set(tier.chunks) == {(0, 0), (0, 1), (2, 0)}
    manager.check()


def test_what_was_set_aside_for_a_save_that_is_not_made_stays() -> None:
    device = {*keys_of(0), *keys_of(1)}
    tier, manager = joined(DEPTH, device)
    for agent, soon in ((0, 20.0), (1, 10.0)):
        call(tier, agent, soon)
    assert manager.store(keys_of(0), Context("store"))
    device.difference_update(keys_of(0))
    tier.device_changed(keys_of(0))
    assert tier.make_room(keys_of(1)) == keys_of(1)
    tier.put_back()
    assert list(tier.chunks) == keys_of(0)
    assert save(tier, manager, keys_of(1)) == keys_of(1)  # and it can leave later
    assert list(tier.chunks) == keys_of(1)
    manager.check()


def test_a_hint_that_cannot_be_read_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    tier = HostTier(4)
    for number in range(3):
        context = Context(f"{number}", {"scalesim": {"agent": 1.5}})
        tier.touch([number], context)
        tier.on_request_finished([], set(), set(), context)
    assert tier.stats()["malformed_hints"] >= 3
    assert len([each for each in caplog.records if "hint is ignored" in each.message]) == 1


def test_hints_from_outside() -> None:
    tier = HostTier(4)
    tier.expect({"ada": 3.0}, absolute=False)
    tier.tick(1.0, None)
    tier.tick(1.0, 5.0)
    assert tier.stats()["now"] == 5.0 and tier.stats()["agents"] == 1
    tier.forget(["ada"])
    assert tier.stats()["agents"] == 0


def test_a_board_of_the_connectors_is_not_taken_late() -> None:
    tier = HostTier(4)
    tier.insert("key", Chunk(0, 0))
    with pytest.raises(AssertionError, match="has 1 chunks already"):
        tier.join(CallBoard(), set[Any])
