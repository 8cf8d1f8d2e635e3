"""A cache of agents, driven by next uses: the smallest thing on which an order is worth something.

For ``learned`` and the tests of sources. Agents are loaded when they call, never ahead.
"""

from __future__ import annotations

from collections.abc import Sequence

from scalesim.distance.clock import Clock
from scalesim.distance.distances import Distances
from scalesim.distance.estimates import Source
from scalesim.memory.eviction.lazy_heap import LazyHeap
from scalesim.memory.tree.use import UseTime
from scalesim.profile.caches import belady_misses
from scalesim.replay.workloads import workload

Steps = list[list[int]]  # by step, who calls, in order


def misses(
    steps: Steps, capacity: int, sources: Sequence[Source] = (), *, hints: bool = False
) -> int:
    """Calls that find their agent gone. Without sources: LRU; ``hints`` declare the truth."""
    distances = Distances(Clock())
    order: LazyHeap[int] = LazyHeap()
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
        order.add(agent, UseTime(*next_use.get(agent, (None, 0)), *last.get(agent, (0.0, 0))))

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
    """The fewest misses that are possible."""
    return belady_misses([agent for agents in steps for agent in agents], capacity)


def acts(kind: str, agents: int, steps: int, seed: int) -> Steps:
    """When the agents of a replay's workload act: its schedule, without texts."""
    family, knobs = workload(kind, agents=agents, steps=steps, seed=seed)
    schedule = family.schedule(knobs)
    due: list[list[tuple[float, int]]] = [[] for _ in range(steps + 1)]

    def plan(who: int, at: float) -> None:
        if at < steps + 1:
            due[int(at)].append((at, who))

    for who in range(agents):
        plan(who, schedule.first(who))
    for now in range(steps + 1):
        for at, who in sorted(due[now]):
            plan(who, schedule.after(who, at))
    return [[who for _, who in sorted(each)] for each in due]
