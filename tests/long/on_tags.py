"""Campaigns on tags: no torch, no floats, every read verified."""

from __future__ import annotations

import random
from collections import Counter

from scalesim.memory.eviction.policies import POLICIES
from scalesim.testing.memory_walk import MemoryWalk
from scalesim.testing.memory_world import WorldShape
from scalesim.testing.walks import run
from tests.machines.explore import explore
from tests.machines.request_walk import RequestWalk
from tests.machines.schedules import SCHEDULES
from tests.machines.small_cases import small_cases

OPERATIONS, REQUEST_STEPS, ABORT_STEPS = 400, 120, 400


def operations(seed: int) -> Counter[str]:
    """A walk over the memory layer; mostly tiny pools, which find the most."""
    rng = random.Random(seed)
    shape = WorldShape(
        pages=rng.randint(1, rng.choice([4, 8, 16, 64])),
        host=rng.choice([0.0, 0.5, 1.0, 2.0]),
        block_size=rng.choice([1, 2, 4, 16]),
        policy=rng.choice(sorted(POLICIES)),
        seed=seed,
        adapters=rng.choice([0, 1, 3]),
        blobs=rng.choice([0, 0, 2]),
        models=rng.choice([0, 0, 4]),
    )
    world = run(MemoryWalk(shape, seed, OPERATIONS))
    counters = world.manager.counters
    return Counter(
        operations=OPERATIONS + 1,
        walks=1,
        steps=world.num_launched,
        saved=counters.saved_pages,
        loaded=counters.loaded_pages + counters.read_pages,
        compacted=counters.compacted_pages,
    )


def schedules(seed: int) -> Counter[str]:
    """Requests' lives under one hostile schedule."""
    names = sorted(SCHEDULES)
    world = run(RequestWalk(seed, REQUEST_STEPS, names[seed % len(names)]))
    return Counter(
        schedules=1,
        requests=world.num_ended,
        steps=world.world.scheduler.num_steps,
        copies=world.world.num_copies_ended,
    )


def aborts(seed: int) -> Counter[str]:
    """Many aborts at random phases; the books are compared at the end of each walk, and twice on
    the way: everything is let go, and every page is free."""
    names = sorted(SCHEDULES)
    walk = RequestWalk(seed, ABORT_STEPS, names[seed % len(names)], aborts=60.0)
    operations = walk.operations()
    world = walk.world()
    for done, (name, arguments) in enumerate(operations):
        getattr(world, name)(*arguments)
        if done % 100 == 0:
            world.check()
    counts = Counter({f"while {phase}": n for phase, n in world.num_cancelled.items()})
    counts.update(aborts=sum(world.num_cancelled.values()), requests=world.num_ended, leaked=0)
    return counts


def interleavings(seed: int) -> Counter[str]:
    """Every path through one small case; the seed is its number."""
    cases = small_cases()
    case = cases[seed % len(cases)]
    explored = explore(case)
    print(f"  {case.name}: {explored.states:,} states, {explored.choices:,} choices")
    return Counter(
        cases=1, states=explored.states, choices=explored.choices, paths=explored.paths,
        left=explored.left,
    )  # fmt: skip
