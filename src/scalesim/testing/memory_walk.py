"""Seeded random walks over a memory world: one operation after the other, everything checked.

A walk is a function of its shape, its seed and what is under test, and its operations are values:
a failing one is replayed by its seed and shrunk to the few operations that it takes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scalesim.testing.bed import OURS, Factories
from scalesim.testing.memory_world import AGENTS, FAR, KINDS, MemoryWorld, Shape

Operation = tuple[str, tuple[Any, ...]]
"""The name of one of ``MemoryWorld``'s operations, and its arguments."""

_Draw = Callable[[random.Random], tuple[Any, ...]]


def _some(*limits: int) -> _Draw:
    return lambda rng: tuple(rng.randrange(limit) for limit in limits)


def _request(rng: random.Random) -> tuple[Any, ...]:
    return (*_some(AGENTS)(rng), rng.choice(KINDS), *_some(1000, 9, 9)(rng))


def _flags(*odds: int) -> _Draw:
    return lambda rng: tuple(rng.randrange(odd) > 0 for odd in odds)


_ACTS: list[tuple[float, str, _Draw]] = [
    (18, "acquire", _request),
    (30, "turn", _request),
    (9, "abort", _flags(3)),
    (14, "launch", lambda rng: (1 + rng.randrange(12), rng.randrange(64))),
    (5, "run_device", _some()),
    (10, "collect", _some()),
    (6, "grow", _some(9, 4)),
    (6, "commit", _some(9)),
    (16, "release", lambda rng: (rng.randrange(9), rng.randrange(5) > 0)),
    (
        6,
        "expect_agent",
        lambda rng: (rng.randrange(AGENTS), rng.choice([None, -1, 1, 2, 5, FAR])),
    ),
    (3, "advance", _some(4)),
    (4, "plan", _some()),
    (9, "land", _some(12)),
    (14, "poll", _some()),
    (2, "fail_copy", _some()),
    (1, "fork", _some(AGENTS, AGENTS)),
    (0.5, "drop_agent", _some(AGENTS)),
    (0.3, "exhaust", _some()),
    (3, "poison", _some(9)),
    (0.3, "quiesce", _some()),
]
_OF_ADAPTERS: list[tuple[float, str, _Draw]] = [
    (9, "load_adapter", _some(9, 9)),
    (3, "unload_adapter", _some(9)),
    (2, "break_source", _some(9)),
]


@dataclass(frozen=True)
class Walk:
    """``steps`` operations on a world of ``shape``, drawn from ``seed``; then all is let go."""

    shape: Shape
    seed: int
    steps: int

    def operations(self) -> list[Operation]:
        rng = random.Random(self.seed)
        acts = _ACTS + (_OF_ADAPTERS if self.shape.adapters else [])
        chosen = rng.choices(acts, [weight for weight, _, _ in acts], k=self.steps)
        return [*((name, draw(rng)) for _, name, draw in chosen), ("quiesce", ())]

    def run(self, factories: Factories = OURS) -> MemoryWorld:
        """Raises whatever a check, or the code under test, raises first."""
        world = MemoryWorld(self.shape, factories)
        for _ in play(world, self.operations()):
            pass
        return world


def play(world: MemoryWorld, operations: Sequence[Operation]) -> Iterator[int]:
    """Do each operation and check everything after it; yields how many are done."""
    for done, (name, arguments) in enumerate(operations, 1):
        getattr(world, name)(*arguments)
        world.check()
        yield done


@dataclass(frozen=True)
class Failure:
    """What a walk ended with: the operations up to and with the one that failed, and its error."""

    walk: Walk
    operations: list[Operation]
    error: Exception


def failure_of(
    walk: Walk, factories: Factories = OURS, operations: Sequence[Operation] | None = None
) -> Failure | None:
    """How ``walk`` (with other ``operations``, if given) fails; ``None`` if it does not."""
    operations = walk.operations() if operations is None else operations
    done = 0
    try:
        world = MemoryWorld(walk.shape, factories)
        for done in play(world, operations):  # noqa: B007  what was done when it failed
            pass
    except Exception as error:
        return Failure(walk, list(operations[: done + 1]), error)
    return None


def shrink(failure: Failure, factories: Factories = OURS, *, max_runs: int = 2000) -> Failure:
    """A failure with as few operations as removing them in ever smaller pieces gives (Zeller's
    delta debugging); any failure counts, not this one only."""
    size, runs = len(failure.operations) // 2, 0
    while size and runs < max_runs:
        start, shorter = 0, False
        while start < len(failure.operations) and runs < max_runs:
            runs += 1
            rest = failure.operations[:start] + failure.operations[start + size :]
            found = failure_of(failure.walk, factories, rest)
            if found is None:
                start += size
            else:
                failure, shorter = found, True
        if not shorter or size > 1:
            size //= 2
    return failure
