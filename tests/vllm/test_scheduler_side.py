"""The scheduler's side: what is found, that every hit has the right content, and that nothing is
left behind, in a world where memory is looked at."""

from __future__ import annotations

import random
from typing import Any

import pytest

from benchmarks.plugin_vllm import groups_of
from scalesim.replay.bound import Access, belady_loads, reads_again
from scalesim.vllm import scheduler_side
from tests.vllm.world import Running, World, use_doubles

OWN, AGENTS, ROUNDS = 4, 40, 5


@pytest.fixture(autouse=True)
def doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    use_doubles(monkeypatch)


def own(agent: int, size: int = OWN) -> list[bytes]:
    return [f"{agent}/{depth}".encode() for depth in range(size)]


def play(
    world: World, calls: list[int], *, told: bool = True, size: int = OWN, looked_at: bool = True
) -> list[int]:
    """One call after the other, ``told`` truly when each agent calls next; the blocks that each
    finds. ``size``: blocks of an agent. Memory is ``looked_at`` after each call."""
    hits = []
    following: dict[int, float] = {}
    nexts = []
    for now in reversed(range(len(calls))):
        nexts.append(following.get(calls[now], 1e6))
        following[calls[now]] = float(now)
    for now, agent in enumerate(calls):
        soon = nexts[-1 - now]
        prompt = [*own(agent, size), f"new {now}".encode()]
        said = {"now": now, "next": soon} if told else {}
        request = world.arrive(f"r{now}", agent, prompt, **said)
        before = world.device_hits + world.host_hits
        while (running := world.admit(request)) is None:
            world.step()
        hits.append(world.device_hits + world.host_hits - before)
        while world.is_loading:
            world.step()
        world.compute(running)
        world.step()
        world.finish(running)
        world.settle()
        if looked_at:
            world.check()
    return hits


def best(calls: list[int], capacity: int, size: int = OWN) -> list[int]:
    """The blocks that each call could find at most."""
    accesses = []
    for now, agent in enumerate(calls):
        pages = tuple(agent * size + depth for depth in range(size))
        accesses.append(Access((*pages, 10**6 + now), size))
    again = [len(pages) for pages in reads_again(accesses)]
    return [one - lost for one, lost in zip(again, belady_loads(accesses, capacity), strict=True)]


@pytest.mark.parametrize("prefetch_agents", [0, 2])
@pytest.mark.parametrize("order", ["cycle", "permutations"])
@pytest.mark.parametrize("slow", [False, True])
def test_both_tiers_find_nearly_what_belady_finds(
    order: str, prefetch_agents: int, slow: bool
) -> None:
    """From the third round on: what of a prompt comes again is learned in the second. A request
    whose state is on the host has two copies of it while it runs, which Belady has not."""
    rng, calls = random.Random(5), list[int]()
    for _ in range(ROUNDS):
        one = list(range(AGENTS))
        if order == "permutations":
            rng.shuffle(one)
        calls += one
    device, host = AGENTS // 4 * OWN + 3, AGENTS // 2 * OWN
    world = World(device, host, prefetch_agents=prefetch_agents, slow=slow)
    hits = play(world, calls)
    share = sum(hits[2 * AGENTS :]) / sum(best(calls, device + host)[2 * AGENTS :])
    assert share >= (0.9 if prefetch_agents else 0.98)
    if prefetch_agents:
        assert world.host_hits < 0.05 * world.device_hits
    stats = world.side.stats()
    assert stats["device_hit_tokens"] == 16 * world.device_hits
    assert stats["requests"] == len(calls)


@pytest.mark.parametrize("order", ["cycle", "permutations", "w1"])
def test_two_hundred_agents_find_nearly_what_belady_finds(order: str) -> None:
    """Over all calls, those too before it is learned what of a prompt comes again."""
    agents, size, rounds = 200, 8, 1 if order == "w1" else 3
    groups = groups_of(order, agents, rounds, together=1, seed=0)
    calls = [agent for group in groups for agent, _, _ in group]
    device, host = agents // 4 * size + 3, agents // 2 * size
    world = World(device, host, prefetch_agents=2)
    hits = play(world, calls, size=size, looked_at=False)
    world.check()
    assert sum(hits) >= 0.98 * sum(best(calls, device + host, size))
    assert world.host_hits < 0.05 * world.device_hits


def test_without_hints_next_calls_are_learned() -> None:
    """A cycle, where LRU finds nothing: of agents that only say who they are."""
    calls = list(range(AGENTS)) * 8
    device, host = AGENTS // 4 * OWN + 3, AGENTS // 2 * OWN
    last = slice(-AGENTS, None)
    ideal = sum(best(calls, device + host)[last])
    assert sum(play(World(device, host), calls, told=False)) == 0
    assert sum(play(World(device, host, learn=True), calls, told=False)[last]) >= 0.9 * ideal


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("slow, groups", [(False, [0]), (True, [0]), (True, [0, 1])])
def test_every_hit_has_its_content(
    seed: int, slow: bool, groups: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of many agents and of nobody at once, hints late and wrong, aborts and resets; with
    every second seed, four blocks are emptied ahead."""
    rng = random.Random(seed)
    if seed % 2:
        monkeypatch.setattr(scheduler_side, "BLOCKS_PER_AHEAD", 5 * len(groups))
    device, host = 22 * len(groups), 30 * len(groups)
    world = World(device, host, prefetch_agents=3, slow=slow, groups=groups)
    waiting: list[Any] = []
    running: list[Running] = []
    for number in range(250):
        act = rng.random()
        agent = rng.randrange(10)
        if act < 0.4 and len(waiting) < 4:
            tail = [f"{agent % 3} {rng.randrange(6)}".encode() for _ in range(rng.randrange(3))]
            prompt = [b"all", *own(agent)[: rng.randrange(1, OWN + 1)]]
            said = {} if act < 0.1 else {"now": number, "next": number + rng.randrange(40)}
            who = None if act < 0.05 else agent
            if who is None:
                said = {}
            waiting.append(world.arrive(f"r{number}", who, prompt + chained(prompt, tail), **said))
        elif act < 0.45 and waiting:
            gone = waiting.pop(rng.randrange(len(waiting)))
            world.side.end(gone)
        elif act < 0.5:
            world.side.expect({agent: float(rng.randrange(30))}, absolute=False)
        elif act < 0.53:
            world.side.forget([agent])
        elif act < 0.55 and not running and not world.side.has_work():
            world.settle()
            world.pool.reset()
            world.side.reset()
            world.manager.reset()
        if waiting and (admitted := world.admit(waiting[0])) is not None:
            waiting.pop(0)
            running.append(admitted)
        for one in list(running):
            if one.waits and world.is_loading:
                continue
            world.compute(one)
            world.step()
            world.finish(one)
            running.remove(one)
        world.step()
        world.check()
    for request in waiting:
        world.side.end(request)
    world.settle()
    for one in running:
        world.compute(one)
        world.step()
        world.finish(one)
    world.settle()
    world.check()
    assert world.pool.free_block_queue.num_free_blocks == device
    assert world.side.stats()["keys"] <= device + host
    assert world.side.stats()["copies"] == 0


def chained(prompt: list[bytes], tail: list[bytes]) -> list[bytes]:
    """Keys behind ``prompt``: a key stands for all before it too."""
    found: list[bytes] = []
    for part in tail:
        found.append(b"|".join([*prompt, *found[-1:], part])[-40:])
    return found


def test_a_load_ahead_brings_nothing_after_a_reset() -> None:
    world = World(2 * OWN + 3, 4 * OWN, prefetch_agents=1, slow=True)
    play(world, [0, 1, 2, 0, 1, 2])
    world.side.expect({0: 0.0, 1: 1.0, 2: 2.0}, absolute=False)
    world.step()
    if world.side.stats()["copies"]:
        world.side.reset()
        world.manager.reset()
        world.pool.found.clear()
    world.settle()
    assert world.pool.free_block_queue.num_free_blocks == 2 * OWN + 3


def test_a_request_that_the_plug_in_was_not_told_of_does_no_harm() -> None:
    """As where the connector was bound while it ran; and an end that is told twice."""
    world = World(2 * OWN + 3, 4 * OWN)
    play(world, [0, 1, 0])
    stranger = world.arrive("stranger", 1, own(1))
    world.side.end(stranger)
    running = world.admit(stranger)
    assert running is not None
    while world.is_loading:
        world.step()
    world.compute(running)
    world.step()
    world.finish(running)
    world.side.end(stranger)
    world.settle()
    world.check()
    assert world.side.stats()["copies"] == 0
    play(world, [1, 0])


def test_a_session_that_takes_tokens_back_names_its_new_blocks() -> None:
    """vLLM cuts the hashes of a session that goes on from elsewhere, and adds others."""
    world = World(3 * OWN, 4 * OWN)
    request = world.arrive("session", 0, own(0))
    running = world.admit(request)
    assert running is not None
    world.compute(running)
    world.step()
    request.block_hashes[2:] = [b"another 2", b"another 3", b"another 4"]
    world.finish(running)
    world.settle()
    world.side.expect({0: 5.0}, absolute=False)
    [ada] = world.side.board.soonest(1)
    assert {bytes(key[:-4]) for key in ada.expected} >= {b"another 2", b"another 3"}
