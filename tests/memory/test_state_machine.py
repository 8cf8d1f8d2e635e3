"""The memory layer against a model that knows no page ids: Hypothesis, then seeded walks over tiny
pools."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from scalesim.memory.eviction.policies import POLICIES
from scalesim.memory.tree.prefix_tree import TEXT
from scalesim.testing.memory_walk import MemoryWalk
from scalesim.testing.memory_world import (
    AGENTS,
    FAR,
    KINDS,
    MAX_LEASES,
    MemoryWorld,
    WorldShape,
)
from scalesim.testing.walks import play, run

EXAMPLES, STEPS_PER_EXAMPLE = 390, 60
small = st.integers(0, 20)
agents = st.integers(0, AGENTS - 1)
leases = st.integers(0, MAX_LEASES - 1)
pages = st.integers(1, 8) | st.integers(1, 64)


class MemoryMachine(RuleBasedStateMachine):
    """Every rule is one of the world's operations; everything is checked after every rule."""

    num_steps = 0
    world: MemoryWorld | None = None

    @initialize(
        pages=pages,
        host=st.sampled_from([1.0, 0.5, 0.0]),
        block_size=st.sampled_from([1, 2, 4, 16]),
        policy=st.sampled_from(sorted(POLICIES)),
        seed=st.integers(0, 2**16),
        adapters=st.sampled_from([0, 1, 3]),
        disk=st.sampled_from([0.0, 0.5, 3.0]),
        blobs=st.sampled_from([0, 2]),
        models=st.sampled_from([0, 2]),
    )
    def begin(self, **shape: Any) -> None:
        self.world = MemoryWorld(WorldShape(**shape))

    @rule(agent=agents, kind=st.sampled_from(KINDS), pick=st.integers(0, 99), n=small, spare=small)
    def acquire(self, agent: int, kind: str, pick: int, n: int, spare: int) -> None:
        self.world.acquire(agent, kind, pick, n, spare)

    @rule(agent=agents, kind=st.sampled_from(KINDS), pick=st.integers(0, 99), n=small, spare=small)
    def turn(self, agent: int, kind: str, pick: int, n: int, spare: int) -> None:
        self.world.request(agent, kind, pick, n, spare)

    @rule(name=st.integers(0, 2), num_pages=st.integers(0, 20))
    def load_adapter(self, name: int, num_pages: int) -> None:
        self.world.adapters.load(name, num_pages)

    @rule(name=st.integers(0, 2))
    def unload_adapter(self, name: int) -> None:
        self.world.adapters.unload(name)

    @rule(name=st.integers(0, 2))
    def break_source(self, name: int) -> None:
        self.world.adapters.break_source(name)

    @rule(agent=agents, name=st.integers(0, 1), num_pages=small, pick=st.integers(0, 99))
    def set_blob(self, agent: int, name: int, num_pages: int, pick: int) -> None:
        self.world.blobs.set(agent, name, num_pages, pick)

    @rule(agent=agents, name=st.integers(0, 1))
    def delete_blob(self, agent: int, name: int) -> None:
        self.world.blobs.delete(agent, name)

    @rule(agent=agents)
    def read_blobs(self, agent: int) -> None:
        self.world.blobs.read(agent)

    @rule(agent=agents, pick=st.integers(0, 99))
    def use_blobs(self, agent: int, pick: int) -> None:
        self.world.blobs.use(agent, pick)

    @rule(which=st.integers(0, 2))
    def break_blobs(self, which: int) -> None:
        self.world.blobs.break_sources(which)

    @rule(name=st.integers(0, 1), num_pages=small)
    def add_model(self, name: int, num_pages: int) -> None:
        self.world.models.add(name, num_pages)

    @rule(agent=agents, name=st.integers(0, 8))
    def use_model(self, agent: int, name: int) -> None:
        self.world.models.use(agent, name)

    @rule(name=st.integers(0, 1))
    def break_model(self, name: int) -> None:
        self.world.models.break_source(name)

    @rule(count=st.integers(1, 20), mask=st.integers(1, 63))
    def launch(self, count: int, mask: int) -> None:
        self.world.launch(count, mask)

    @rule(count=st.integers(1, 20))
    def compute_all(self, count: int) -> None:
        self.world.launch(count, 63)
        self.world.collect()

    @rule()
    def run_device(self) -> None:
        self.world.run_device()

    @rule()
    def collect(self) -> None:
        self.world.collect()

    @rule(pick=leases, more=st.integers(0, 4))
    def grow(self, pick: int, more: int) -> None:
        self.world.grow(pick, more)

    @rule(pick=leases)
    def commit(self, pick: int) -> None:
        self.world.commit(pick)

    @rule(pick=leases, keep=st.booleans())
    def release(self, pick: int, keep: bool) -> None:
        self.world.release(pick, keep)

    @rule(again=st.booleans())
    def abort(self, again: bool) -> None:
        self.world.abort(again)

    @rule(agent=agents, at=st.sampled_from([None, -5, 0, 1, 2, 7, FAR, float("inf")]))
    def expect_agent(self, agent: int, at: float | None) -> None:
        self.world.expect_agent(agent, at)

    @rule(steps=st.integers(0, 5))
    def advance(self, steps: int) -> None:
        self.world.advance(steps)

    @rule(parent=agents, child=agents)
    def fork(self, parent: int, child: int) -> None:
        self.world.fork(parent, child)

    @rule(agent=agents)
    def drop_agent(self, agent: int) -> None:
        self.world.drop_agent(agent)

    @rule(agent=agents)
    def forget_agent(self, agent: int) -> None:
        self.world.forget_agent(agent)

    @rule()
    def forget_all(self) -> None:
        self.world.forget_all()

    @rule()
    def fork_world(self) -> None:
        self.world.fork_world()

    @rule()
    def close_world(self) -> None:
        self.world.close_world()

    @rule()
    def look(self) -> None:
        self.world.look()

    @rule(count=st.integers(1, 4))
    def copy_blocks(self, count: int) -> None:
        self.world.copy_blocks(count)

    @rule()
    def read_slots(self) -> None:
        self.world.read_slots()

    @rule()
    def restart(self) -> None:
        self.world.restart()

    @rule()
    def plan(self) -> None:
        self.world.plan()

    @rule(count=st.integers(1, 12))
    def land(self, count: int) -> None:
        self.world.land(count)

    @rule()
    def poll(self) -> None:
        self.world.poll()

    @rule()
    def fail_copy(self) -> None:
        self.world.fail_copy()

    @rule(pick=leases)
    def poison(self, pick: int) -> None:
        self.world.poison(pick)

    @rule()
    def exhaust(self) -> None:
        self.world.exhaust()

    @rule()
    def quiesce(self) -> None:
        self.world.quiesce()

    @invariant()
    def holds(self) -> None:
        if self.world is not None:
            MemoryMachine.num_steps += 1
            self.world.check()

    def teardown(self) -> None:
        if self.world is not None:
            self.world.quiesce()


def test_state_machine() -> None:
    MemoryMachine.num_steps = 0
    run_state_machine_as_test(
        MemoryMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS_PER_EXAMPLE,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert MemoryMachine.num_steps >= 20_000, MemoryMachine.num_steps


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("num_pages", range(1, 9))
def test_tiny_pools(num_pages: int, policy: str) -> None:
    for seed, (host, block_size) in enumerate([(1.0, 4), (0.5, 2), (0.0, 1)]):
        shape = WorldShape(num_pages, host, block_size, policy, seed)
        run(MemoryWalk(shape, seed, 60))


@pytest.mark.parametrize("policy", ["deadline", "lru-swap"])
def test_larger_pools_with_everything_on_the_host(policy: str) -> None:
    for seed in range(6):
        shape = WorldShape(24, 1.0, 2, policy, seed)
        run(MemoryWalk(shape, seed, 250))


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("num_pages", [3, 5, 9, 16])
def test_pools_with_adapters(num_pages: int, policy: str) -> None:
    """KV and adapters in one pool: loaded, used, activated, unloaded in use, names reused."""
    reads = 0
    for seed, (host, block_size) in enumerate([(1.0, 4), (0.5, 2), (0.0, 1)]):
        shape = WorldShape(num_pages, host, block_size, policy, seed, adapters=3)
        reads += run(MemoryWalk(shape, seed, 150)).manager.counters.read_pages
    assert reads > 0


@pytest.mark.parametrize("policy", ["deadline", "lru-swap"])
@pytest.mark.parametrize("num_pages", [3, 8, 12, 24])
def test_pools_above_a_disk(num_pages: int, policy: str) -> None:
    """Spilled, staged and read on demand, also while the same blocks are read already; with copies
    that fail, and adapters beside."""
    moved = [0, 0]
    for seed, (host, disk, block_size) in enumerate([(0.75, 4.0, 2), (0.5, 2.0, 1), (1.0, 0.7, 4)]):
        adapters = 3 if seed == 2 else 0
        shape = WorldShape(num_pages, host, block_size, policy, seed, adapters, disk)
        counters = run(MemoryWalk(shape, seed, 200)).manager.counters
        moved[0] += counters.spilled_pages
        moved[1] += counters.staged_pages + counters.recalled_pages
    assert num_pages < 8 or all(moved), moved


@pytest.mark.parametrize("policy", ["deadline", "lru-swap"])
@pytest.mark.parametrize("num_pages", [5, 9, 16, 24])
def test_lives_that_go_on_from_snapshots(num_pages: int, policy: str) -> None:
    """Snapshots in pieces, memory made anew from them, all agents forked and forgotten; above a
    disk, too, and with adapters."""
    for seed, (host, disk, block_size) in enumerate([(0.75, 4.0, 2), (0.5, 2.0, 1), (1.0, 0.0, 4)]):
        adapters = 3 if seed == 2 else 0
        shape = WorldShape(num_pages, host, block_size, policy, seed, adapters, disk, lasting=True)
        run(MemoryWalk(shape, seed, 200))


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_pools_with_state_of_the_agents_own(policy: str) -> None:
    """KV, adapters and state in one pool: written whole and in part, read, forked, deleted,
    forgotten; loaded ahead where the policy looks ahead."""
    kept = loaded = 0
    for seed, num_pages in enumerate([3, 6, 12, 24] * 3):
        host, disk, block_size = [(1.0, 0.0, 4), (0.75, 3.0, 2), (2.0, 0.0, 1)][seed % 3]
        shape = WorldShape(num_pages, host, block_size, policy, seed, 3 * (seed % 2), disk, 2)
        walk = MemoryWalk(shape, seed, 200)
        world = walk.world()
        for _ in play(world, walk.operations()):
            own = [segment for segment in world.manager.tree if segment.loss == "fatal"]
            kept += len(own)
            loaded += sum(segment.is_ready for segment in own)
    assert bool(kept) == POLICIES[policy].host
    assert bool(loaded) == POLICIES[policy].look_ahead


def test_pools_with_weights() -> None:
    """KV, adapters, state and the weights of models in one pool: read, loaded ahead, replaced;
    other pages are moved out of their way. Pages hold fewer tokens of some models."""
    moved = ahead = 0
    sizes: set[int] = set()
    for seed, num_pages in enumerate([12, 24, 9, 16]):
        shape = WorldShape(num_pages, 1.0, 4, "deadline", seed, 3 * (seed % 2), 0.0, seed // 2 * 2,
                           models=4)  # fmt: skip
        memory = run(MemoryWalk(shape, seed, 200)).manager
        moved += memory.counters.compacted_pages
        ahead += memory.counters.prefetched_pages
        sizes |= {root.block_size for root in memory.tree.roots(TEXT)}
    assert moved and ahead, (moved, ahead)
    assert sizes == {1, 2, 4}


def test_room_for_state_is_made_of_what_is_half_on_the_device_and_half_on_the_disk() -> None:
    """A walk that once failed: nothing moved, and the host had no room for what must be kept."""
    shape = WorldShape(12, 0.5, 2, "deadline", 8, disk=4.0, blobs=2)
    run(MemoryWalk(shape, 8, 200))


def test_making_room_for_a_copy_does_not_join_what_is_copied_with_what_is_above_it() -> None:
    """A walk that once failed: a host copy was dropped for room, its siblings' parent had one child
    left and became one segment with it, and blocks were counted from the wrong end."""
    shape = WorldShape(8, 1.0, 2, "deadline", 31, adapters=3)
    run(MemoryWalk(shape, 31, 400))
