"""A cache of agents, driven by next uses: the smallest thing on which an order is worth something.

For ``learned`` and the tests of sources. Agents are loaded when they call, never ahead.
"""

from __future__ import annotations

from collections.abc import Sequence

from scalesim.distance.clock import Clock
from scalesim.distance.distances import Distances
from scalesim.distance.estimates import Source
from scalesim.memory.eviction.lazy_heap import LazyHeap
from scalesim.memory.tree.next_use import NextUse
from scalesim.profile.caches import belady_misses
from scalesim.replay.workloads import workload

Ticks = list[list[int]]  # by tick, who calls, in order


def misses(
    ticks: Ticks, capacity: int, sources: Sequence[Source] = (), *, hints: bool = False
) -> int:
    """Calls that find their agent gone. Without sources: LRU; ``hints`` declare the truth."""
    distances = Distances(Clock())
    order: LazyHeap[int] = LazyHeap()
    last: dict[int, tuple[float, int]] = {}
    resident: set[int] = set()
    next_use: dict[int, tuple[float | None, int]] = {}
    count = seq = 0
    truth = following(ticks)

    def apply(changes: list[tuple[object, float | None]]) -> None:
        nonlocal seq
        for agent, at in changes:
            seq += 1
            next_use[agent] = (at, seq)  # type: ignore[index]
            if agent in resident:
                place(agent)  # type: ignore[arg-type]

    def place(agent: int) -> None:
        order.add(agent, NextUse(*next_use.get(agent, (None, 0)), *last.get(agent, (0.0, 0))))

    for source in sources:
        apply(distances.add(source))
    for tick, agents in enumerate(ticks):
        apply(distances.tick(float(tick), to=float(tick)))
        for place_in_tick, agent in enumerate(agents):
            apply(distances.called(agent))
            count += agent not in resident
            if agent not in resident and len(resident) >= capacity:
                victim = order.peek(float(tick))
                assert victim is not None
                order.discard(victim)
                resident.discard(victim)
            resident.add(agent)
            seq += 1
            last[agent] = (float(tick), seq)
            place(agent)
            apply(distances.ended(agent))
            if hints:
                at = truth.get((tick, place_in_tick))
                if at is not None:
                    apply(distances.expect(agent, at))
    return count


def following(ticks: Ticks) -> dict[tuple[int, int], float]:
    """When the agent of each call calls again: tick, and the place in it as a fraction."""
    found: dict[tuple[int, int], float] = {}
    later: dict[int, float] = {}
    for tick in range(len(ticks) - 1, -1, -1):
        for place in range(len(ticks[tick]) - 1, -1, -1):
            agent = ticks[tick][place]
            if agent in later:
                found[tick, place] = later[agent]
            later[agent] = tick + place / len(ticks[tick])
    return found


def belady(ticks: Ticks, capacity: int) -> int:
    """The fewest misses that are possible."""
    return belady_misses([agent for agents in ticks for agent in agents], capacity)


def acts(kind: str, agents: int, ticks: int, seed: int) -> Ticks:
    """When the agents of a replay's workload act: its schedule, without texts."""
    family, knobs = workload(kind, agents=agents, ticks=ticks, seed=seed)
    schedule = family.schedule(knobs)
    due: list[list[tuple[float, int]]] = [[] for _ in range(ticks + 1)]

    def plan(who: int, at: float) -> None:
        if at < ticks + 1:
            due[int(at)].append((at, who))

    for who in range(agents):
        plan(who, schedule.first(who))
    for now in range(ticks + 1):
        for at, who in sorted(due[now]):
            plan(who, schedule.after(who, at))
    return [[who for _, who in sorted(each)] for each in due]
