"""A cache of agents, driven by next uses: the smallest thing on which an order is worth something.
And small seeded simulations to drive it."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np

from scalesim.distance.clock import Clock
from scalesim.distance.distances import Distances
from scalesim.distance.estimates import Source
from scalesim.memory.order import Use, UseOrder

Steps = list[list[int]]  # by step, who calls, in order


def misses(
    steps: Steps, capacity: int, sources: Sequence[Source] = (), *, hints: bool = False
) -> int:
    """Calls that find their agent gone. Without sources: LRU; ``hints`` declare the truth."""
    distances = Distances(Clock())
    order: UseOrder[int] = UseOrder()
    last: dict[int, tuple[float, int]] = {}
    resident: set[int] = set()
    next_use: dict[int, tuple[float | None, int]] = {}
    count = seq = 0
    truth = following(steps)

    def apply(changes: list[tuple[object, float | None]]) -> None:
        nonlocal seq
        for agent, at in changes:
            seq += 1
            next_use[agent] = (at, seq)  # type: ignore[index]
            if agent in resident:
                place(agent)  # type: ignore[arg-type]

    def place(agent: int) -> None:
        order.add(agent, Use(*next_use.get(agent, (None, 0)), *last.get(agent, (0.0, 0))))

    for source in sources:
        apply(distances.add(source))
    for step, agents in enumerate(steps):
        apply(distances.advance(float(step), to=float(step)))
        for place_in_step, agent in enumerate(agents):
            apply(distances.called(agent))
            count += agent not in resident
            if agent not in resident and len(resident) >= capacity:
                victim = order.peek(float(step))
                assert victim is not None
                order.discard(victim)
                resident.discard(victim)
            resident.add(agent)
            seq += 1
            last[agent] = (float(step), seq)
            place(agent)
            apply(distances.ended(agent))
            if hints:
                at = truth.get((step, place_in_step))
                if at is not None:
                    apply(distances.expect(agent, at))
    return count


def following(steps: Steps) -> dict[tuple[int, int], float]:
    """When the agent of each call calls again: step, and the place in it as a fraction."""
    found: dict[tuple[int, int], float] = {}
    later: dict[int, float] = {}
    for step in range(len(steps) - 1, -1, -1):
        for place in range(len(steps[step]) - 1, -1, -1):
            agent = steps[step][place]
            if agent in later:
                found[step, place] = later[agent]
            later[agent] = step + place / len(steps[step])
    return found


def belady(steps: Steps, capacity: int) -> int:
    """The fewest misses that are possible: on a miss, the one that is used last leaves."""
    calls = [agent for agents in steps for agent in agents]
    later: dict[int, int] = {}
    upcoming = [0] * len(calls)
    for index in range(len(calls) - 1, -1, -1):
        upcoming[index] = later.get(calls[index], len(calls) + index)
        later[calls[index]] = index
    heap: list[tuple[int, int]] = []
    resident: dict[int, int] = {}
    count = 0
    for index, agent in enumerate(calls):
        if agent not in resident:
            count += 1
            if len(resident) >= capacity:
                while True:
                    at, victim = heapq.heappop(heap)
                    if resident.get(victim) == -at:
                        del resident[victim]
                        break
        resident[agent] = upcoming[index]
        heapq.heappush(heap, (-upcoming[index], agent))
    return count


def rounds(agents: int, steps: int) -> Steps:
    """Everybody in each step, in a fixed order."""
    return [list(range(agents)) for _ in range(steps)]


def city(agents: int, steps: int, seed: int, kinds: int = 5) -> Steps:
    """Plans: every agent has actions of a few usual lengths, and calls when one ends."""
    rng = np.random.default_rng(seed)
    usual = rng.choice([2, 4, 9, 20, 40], size=agents, p=[0.2, 0.2, 0.2, 0.2, 0.2])
    return list(_by_time(agents, steps, rng, lambda who: max(1, round(float(usual[who]) *
                         float(rng.choice([1.0, 1.0, 1.0, 0.5]))))))  # fmt: skip


def town(agents: int, steps: int, seed: int) -> Steps:
    """Pairs that talk by turns for a while, then part for long."""
    rng = np.random.default_rng(seed)
    state = {"left": np.zeros(agents, int)}

    def pause(who: int) -> int:
        if state["left"][who] > 0:
            state["left"][who] -= 1
            return 2
        state["left"][who] = int(rng.integers(3, 8))
        return int(rng.integers(20, 60))

    return list(_by_time(agents, steps, rng, pause))


def memoryless(agents: int, steps: int, seed: int, rate: float = 0.1) -> Steps:
    """Nothing to learn."""
    rng = np.random.default_rng(seed)
    return [np.flatnonzero(rng.random(agents) < rate).tolist() for _ in range(steps)]


def recent(agents: int, steps: int, seed: int) -> Steps:
    """LRU's best case: who spoke last speaks again, while others come and go."""
    rng = np.random.default_rng(seed)
    active = list(rng.choice(agents, 8, replace=False))
    out: Steps = []
    for _ in range(steps):
        if rng.random() < 0.3:
            active[int(rng.integers(8))] = int(rng.integers(agents))
        out.append([int(each) for each in dict.fromkeys(active) if rng.random() < 0.6])
    return out


def _by_time(
    agents: int, steps: int, rng: np.random.Generator, pause: object
) -> Iterator[list[int]]:
    due: list[list[int]] = [[] for _ in range(steps)]
    for who in range(agents):
        due[int(rng.integers(0, min(steps, 30)))].append(who)
    for step in range(steps):
        yield list(due[step])
        for who in due[step]:
            at = step + pause(who)  # type: ignore[operator]
            if at < steps:
                due[at].append(who)
