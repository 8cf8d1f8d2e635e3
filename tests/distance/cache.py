"""Small seeded simulations: who calls in which tick."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.agent_cache import Ticks


def rounds(agents: int, ticks: int) -> Ticks:
    """Everybody in each tick, in a fixed order."""
    return [list(range(agents)) for _ in range(ticks)]


def city(agents: int, ticks: int, seed: int, kinds: int = 5) -> Ticks:
    """Plans: every agent has actions of a few usual lengths, and calls when one ends."""
    rng = np.random.default_rng(seed)
    usual = rng.choice([2, 4, 9, 20, 40], size=agents, p=[0.2, 0.2, 0.2, 0.2, 0.2])
    return list(_by_time(agents, ticks, rng, lambda who: max(1, round(float(usual[who]) *
                         float(rng.choice([1.0, 1.0, 1.0, 0.5]))))))  # fmt: skip


def town(agents: int, ticks: int, seed: int) -> Ticks:
    """Pairs that talk by turns for a while, then part for long."""
    rng = np.random.default_rng(seed)
    state = {"left": np.zeros(agents, int)}

    def pause(who: int) -> int:
        if state["left"][who] > 0:
            state["left"][who] -= 1
            return 2
        state["left"][who] = int(rng.integers(3, 8))
        return int(rng.integers(20, 60))

    return list(_by_time(agents, ticks, rng, pause))


def memoryless(agents: int, ticks: int, seed: int, rate: float = 0.1) -> Ticks:
    """Nothing to learn."""
    rng = np.random.default_rng(seed)
    return [np.flatnonzero(rng.random(agents) < rate).tolist() for _ in range(ticks)]


def recent(agents: int, ticks: int, seed: int) -> Ticks:
    """LRU's best case: who spoke last speaks again, while others come and go."""
    rng = np.random.default_rng(seed)
    active = list(rng.choice(agents, 8, replace=False))
    out: Ticks = []
    for _ in range(ticks):
        if rng.random() < 0.3:
            active[int(rng.integers(8))] = int(rng.integers(agents))
        out.append([int(each) for each in dict.fromkeys(active) if rng.random() < 0.6])
    return out


def _by_time(
    agents: int, ticks: int, rng: np.random.Generator, pause: object
) -> Iterator[list[int]]:
    due: list[list[int]] = [[] for _ in range(ticks)]
    for who in range(agents):
        due[int(rng.integers(0, min(ticks, 30)))].append(who)
    for tick in range(ticks):
        yield list(due[tick])
        for who in due[tick]:
            at = tick + pause(who)  # type: ignore[operator]
            if at < ticks:
                due[at].append(who)
