"""Seeded random walks: random operations on a world, with all invariants checked after each.

A walk is a function of its seed and of the code under test, and its operations are values. So a
failing walk can be replayed by its seed, and shrunk to the few operations that make it fail.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Protocol

from scalesim.testing.bed import OURS, Factories

Operation = tuple[str, tuple[Any, ...]]
"""The name of one of the world's operations (or, with a dot, of one of its parts'), and its
arguments."""

Draw = Callable[[random.Random], tuple[Any, ...]]
Act = tuple[float, str, Draw]
"""An operation's weight, its name, and the function that draws its arguments."""


class Walk(Protocol):
    """A walk. ``operations`` returns the same operations each time; ``world`` makes a fresh world,
    which has ``check`` and a method for each operation."""

    def operations(self) -> list[Operation]: ...

    def world(self, factories: Factories = OURS) -> Any: ...


def some(*limits: int) -> Draw:
    """A function that draws an integer below each of ``limits``."""
    return lambda rng: tuple(rng.randrange(limit) for limit in limits)


def drawn(acts: Sequence[Act], seed: int, count: int) -> list[Operation]:
    """``count`` operations, by their weights."""
    rng = random.Random(seed)
    chosen = rng.choices(acts, [weight for weight, _, _ in acts], k=count)
    return [(name, draw(rng)) for _, name, draw in chosen]


def play(world: Any, operations: Sequence[Operation]) -> Iterator[int]:
    """Run each operation and check the world after it; yields the number of operations so far."""
    for done, (name, arguments) in enumerate(operations, 1):
        attrgetter(name)(world)(*arguments)
        world.check()
        yield done


def run(walk: Walk, factories: Factories = OURS) -> Any:
    """Run ``walk`` and return its world. Raises the first error of a check or of the code under
    test."""
    world = walk.world(factories)
    for _ in play(world, walk.operations()):
        pass
    return world


@dataclass(frozen=True)
class Failure:
    """A failed walk: the operations up to and including the one that failed, and its error."""

    walk: Walk
    operations: list[Operation]
    error: Exception | SystemExit


def failure_of(
    walk: Walk, factories: Factories = OURS, operations: Sequence[Operation] | None = None
) -> Failure | None:
    """The failure of ``walk`` (with other ``operations``, if given); ``None`` if it passes."""
    operations = walk.operations() if operations is None else operations
    done = 0
    try:
        for done in play(walk.world(factories), operations):  # noqa: B007  what was done when it failed
            pass
    except (Exception, SystemExit) as error:
        return Failure(walk, list(operations[: done + 1]), error)
    return None


def shrink(failure: Failure, factories: Factories = OURS, *, max_runs: int = 2000) -> Failure:
    """Shrink a failure by removing operations in ever smaller pieces (Zeller's delta debugging).
    Any failure counts, not only the same one."""
    size, runs = len(failure.operations) // 2, 0
    while size and runs < max_runs:
        start, shorter = 0, False
        while start < len(failure.operations) and runs < max_runs:
            runs += 1
            kept = failure.operations[:start] + failure.operations[start + size :]
            found = failure_of(failure.walk, factories, kept)
            if found is None:
                start += size
            else:
                failure, shorter = found, True
        if not shorter or size > 1:
            size //= 2
    return failure
