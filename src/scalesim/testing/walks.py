"""Seeded random walks: operations drawn, done one after the other, everything checked after each.

A walk is a function of its seed and of what is under test, and its operations are values: a failing
walk is replayed by its seed and shrunk to the few operations that it takes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from scalesim.testing.bed import OURS, Factories

Operation = tuple[str, tuple[Any, ...]]
"""The name of one of the world's operations, and its arguments."""

Draw = Callable[[random.Random], tuple[Any, ...]]
Act = tuple[float, str, Draw]
"""How often an operation is drawn, its name, and what draws its arguments."""


class Walk(Protocol):
    """``operations`` are the same each time; ``world`` makes a fresh world, with ``check`` and a
    method for each of them."""

    def operations(self) -> list[Operation]: ...

    def world(self, factories: Factories = OURS) -> Any: ...


def some(*limits: int) -> Draw:
    """Draws an integer below each of ``limits``."""
    return lambda rng: tuple(rng.randrange(limit) for limit in limits)


def drawn(acts: Sequence[Act], seed: int, count: int) -> list[Operation]:
    """``count`` operations, by their weights."""
    rng = random.Random(seed)
    chosen = rng.choices(acts, [weight for weight, _, _ in acts], k=count)
    return [(name, draw(rng)) for _, name, draw in chosen]


def play(world: Any, operations: Sequence[Operation]) -> Iterator[int]:
    """Do each operation and check everything after it; yields how many are done."""
    for done, (name, arguments) in enumerate(operations, 1):
        getattr(world, name)(*arguments)
        world.check()
        yield done


def run(walk: Walk, factories: Factories = OURS) -> Any:
    """The world at the end of ``walk``. Raises whatever a check, or the code under test, raises
    first."""
    world = walk.world(factories)
    for _ in play(world, walk.operations()):
        pass
    return world


@dataclass(frozen=True)
class Failure:
    """What a walk ended with: the operations up to and with the one that failed, and its error."""

    walk: Walk
    operations: list[Operation]
    error: Exception | SystemExit


def failure_of(
    walk: Walk, factories: Factories = OURS, operations: Sequence[Operation] | None = None
) -> Failure | None:
    """How ``walk`` (with other ``operations``, if given) fails; ``None`` if it does not."""
    operations = walk.operations() if operations is None else operations
    done = 0
    try:
        for done in play(walk.world(factories), operations):  # noqa: B007  what was done when it failed
            pass
    except (Exception, SystemExit) as error:
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
            kept = failure.operations[:start] + failure.operations[start + size :]
            found = failure_of(failure.walk, factories, kept)
            if found is None:
                start += size
            else:
                failure, shorter = found, True
        if not shorter or size > 1:
            size //= 2
    return failure
