"""Small seeded simulations: who calls in which step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.agent_cache import Steps


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
