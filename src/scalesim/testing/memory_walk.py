"""Random walks over a memory world."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from scalesim.testing.bed import OURS, Factories
from scalesim.testing.memory_world import AGENTS, FAR, KINDS, MemoryWorld, WorldShape
from scalesim.testing.walks import Act, Operation, drawn, some


def _request(rng: random.Random) -> tuple[Any, ...]:
    return (*some(AGENTS)(rng), rng.choice(KINDS), *some(1000, 9, 9)(rng))


ACTS: list[Act] = [
    (18, "acquire", _request),
    (30, "request", _request),
    (9, "abort", lambda rng: (rng.randrange(3) > 0,)),
    (14, "launch", lambda rng: (1 + rng.randrange(12), rng.randrange(64))),
    (5, "run_device", some()),
    (10, "collect", some()),
    (6, "grow", some(9, 4)),
    (6, "commit", some(9)),
    (16, "release", lambda rng: (rng.randrange(9), rng.randrange(5) > 0)),
    (
        6,
        "expect_agent",
        lambda rng: (rng.randrange(AGENTS), rng.choice([None, -1, 1, 2, 5, FAR])),
    ),
    (3, "advance", some(4)),
    (4, "plan", some()),
    (9, "land", some(12)),
    (14, "poll", some()),
    (2, "fail_copy", some()),
    (1, "fork", some(AGENTS, AGENTS)),
    (0.5, "drop_agent", some(AGENTS)),
    (1, "forget_agent", some(AGENTS)),
    (0.1, "forget_all", some()),
    (0.3, "exhaust", some()),
    (3, "poison", some(9)),
    (0.3, "quiesce", some()),
]
OF_ADAPTERS: list[Act] = [
    (9, "adapters.load", some(9, 9)),
    (3, "adapters.unload", some(9)),
    (2, "adapters.break_source", some(9)),
]
OF_BLOBS: list[Act] = [
    (12, "blobs.set", some(AGENTS, 9, 9, 999)),
    (2, "blobs.delete", some(AGENTS, 9)),
    (3, "blobs.read", some(AGENTS)),
    (1, "blobs.break_sources", some(3)),
    (8, "blobs.use", some(AGENTS, 99)),
    (2, "fork", some(AGENTS, AGENTS)),
]
OF_MODELS: list[Act] = [
    (4, "models.add", some(9, 40)),
    (4, "models.use", some(AGENTS, 9)),
    (24, "models.call", some(AGENTS, 9, 9)),
    (1, "models.break_source", some(9)),
]
OF_LASTING: list[Act] = [
    (14, "idle", some(6)),
    (6, "look", some()),
    (6, "copy_blocks", some(30)),
    (0.3, "read_slots", some()),
    (1, "restart", some()),
    (1, "turn_over", some(2 * AGENTS)),
    (2, "fork_world", some()),
    (1, "close_world", some()),
]


@dataclass(frozen=True)
class MemoryWalk:
    """``steps`` operations on a world of ``shape``, drawn from ``seed``; then all is let go."""

    shape: WorldShape
    seed: int
    steps: int

    def operations(self) -> list[Operation]:
        shape = self.shape
        acts = ACTS + OF_ADAPTERS * (shape.adapters > 0) + OF_BLOBS * (shape.blobs > 0)
        acts += OF_MODELS * (shape.models > 0) + OF_LASTING * shape.lasting
        return [*drawn(acts, self.seed, self.steps), ("quiesce", ())]

    def world(self, factories: Factories = OURS) -> MemoryWorld:
        return MemoryWorld(self.shape, factories)
