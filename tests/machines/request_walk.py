"""Random walks over requests' lives, under every schedule."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from scalesim.config import SchedulerConfig
from scalesim.memory.eviction.policies import POLICIES
from scalesim.testing.bed import OURS, Factories
from scalesim.testing.walks import Act, Operation, drawn, some
from tests.machines.request_world import AGENTS, KINDS, RequestWorld
from tests.machines.scheduler_world import Setting
from tests.machines.schedules import SCHEDULES


def _request(rng: random.Random) -> tuple[Any, ...]:
    return (*some(AGENTS)(rng), rng.choice(KINDS), *some(1000, 9, 9)(rng))


_TIMES: list[float | None] = [None, -5.0, 0.0, 1.0, 2.0, 7.0, 1e9, float("inf")]

ACTS: list[Act] = [
    (30, "ask", _request),
    (60, "iterate", lambda rng: (1 + rng.randrange(4),)),
    (10, "happen", some(16)),
    (2, "fail_copy", some()),
    (6, "expect_agent", lambda rng: (rng.randrange(AGENTS), rng.choice(_TIMES))),
    (4, "advance", some(4)),
    (1, "fork", some(AGENTS, AGENTS)),
    (1, "forget", some(AGENTS)),
    (3, "load_adapter", some(9, 9)),
    (1, "unload_adapter", some(9)),
]


@dataclass(frozen=True)
class RequestWalk:
    """``steps`` operations on a world that ``seed`` draws: a pool of 1 to 64 pages, a host pool of
    none to twice that, any policy and block size, with or without adapters, under ``schedule``; one
    operation in ``1 / (1 + aborts / 118)`` ends a request. Then all requests run to their end."""

    seed: int
    steps: int
    schedule: str
    aborts: float = 8.0
    most_pages: int = 64

    def operations(self) -> list[Operation]:
        acts = [*ACTS, (self.aborts, "cancel", some(64))]
        return [*drawn(acts, self.seed, self.steps), ("finish", ())]

    def world(self, factories: Factories = OURS) -> RequestWorld:
        rng = random.Random(self.seed)
        block_size = rng.choice([1, 2, 4, 16])
        fewest = 1 if block_size > 1 else 2  # a prompt and an answer
        pages = rng.randint(fewest, rng.choice([8, 8, 20, self.most_pages]))
        adapters = rng.choice([0, 1, 3]) if pages >= 8 else 0
        budget = rng.choice([4, 9, 24, 64])
        setting = Setting(
            pages=pages,
            host=rng.choice([0.0, 0.5, 1.0, 2.0]),
            policy=rng.choice(sorted(POLICIES)),
            block_size=block_size,
            steps_in_flight=rng.choice([1, 2]),
            failure_rate=rng.choice([0.0, 0.0, 0.1]),
            seed=self.seed,
            max_len=(pages - (max(1, pages // 8) if adapters else 0)) * block_size,
            scheduler=SchedulerConfig(
                max_num_seqs=min(budget, rng.choice([1, 4, 8])),
                max_num_batched_tokens=budget,
                safe_point_tokens=rng.choice([1, 6, 16]),
                max_skips=rng.choice([0, 4]),
            ),
        )
        schedule = SCHEDULES[self.schedule](self.seed)
        bad = rng.choice([0, 0, 3])
        return RequestWorld(setting, factories, schedule, adapters=adapters, bad=bad)
