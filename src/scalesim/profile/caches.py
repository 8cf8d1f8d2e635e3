"""Caches of whole agents over a sequence of calls: reuse distances, and miss ratios under LRU and
Belady's rule."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Sequence

import numpy as np

from scalesim.core import Int64s

COLD = -1


def reuse_distances(calls: Sequence[Hashable]) -> Int64s:
    """For each call, the number of other agents that called since this agent's last call; ``COLD``
    for an agent's first call.

    Mattson's stack distances, by a Fenwick tree over the positions of last calls: O(n log n).
    """
    size = len(calls)
    tree = [0] * (size + 1)
    last: dict[Hashable, int] = {}
    distances = np.full(size, COLD, np.int64)

    def add(index: int, value: int) -> None:
        index += 1
        while index <= size:
            tree[index] += value
            index += index & -index

    def before(index: int) -> int:
        total = 0
        while index > 0:
            total += tree[index]
            index -= index & -index
        return total

    for index, agent in enumerate(calls):
        previous = last.get(agent)
        if previous is not None:
            distances[index] = before(index) - before(previous + 1)
            add(previous, -1)
        add(index, 1)
        last[agent] = index
    return distances


def lru_misses(distances: Int64s, capacity: int) -> int:
    """The misses of LRU with room for ``capacity`` agents, first calls included."""
    return int(((distances == COLD) | (distances >= capacity)).sum())


def belady_misses(calls: Sequence[Hashable], capacity: int) -> int:
    """The fewest possible misses: the agent with the latest next use is evicted (Belady 1966)."""
    later: dict[Hashable, int] = {}
    upcoming = [0] * len(calls)
    for index in range(len(calls) - 1, -1, -1):
        upcoming[index] = later.get(calls[index], len(calls) + index)
        later[calls[index]] = index
    heap: list[tuple[int, int]] = []
    resident: dict[Hashable, int] = {}
    misses = 0
    for index, agent in enumerate(calls):
        if agent not in resident:
            misses += 1
            while len(resident) >= capacity:
                next_use, position = heapq.heappop(heap)
                if resident.get(calls[position]) == -next_use:
                    del resident[calls[position]]
        resident[agent] = upcoming[index]
        heapq.heappush(heap, (-upcoming[index], index))
    return misses


def curve(calls: Sequence[Hashable], shares: Sequence[float]) -> list[dict[str, float]]:
    """Miss ratios with room for these shares of the agents. First calls are not counted, because
    they always miss."""
    distances = reuse_distances(calls)
    num_agents = len(set(calls))
    again = max(1, len(calls) - num_agents)
    rows = []
    for share in shares:
        capacity = max(1, round(share * num_agents))
        rows.append(
            {
                "share": share,
                "agents": capacity,
                "lru": (lru_misses(distances, capacity) - num_agents) / again,
                "belady": (belady_misses(calls, capacity) - num_agents) / again,
            }
        )
    return rows
