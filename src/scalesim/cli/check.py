"""``scalesim check``: runs the test machines on a user's allocator, policy, link or kind of state.

First the part is tested alone, rule by rule of its contract; then in random walks over a memory of
tags, with everything checked after each operation. The first failing walk is shrunk to the few
operations that make it fail, and printed with the command that repeats it. A kind of state has
nothing to do with where its pages lie, so it is tested alone only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pkgutil import resolve_name
from typing import Any

from scalesim.cli.options import CheckOptions
from scalesim.errors import ConfigError
from scalesim.memory.eviction.policies import Policy, policy_named
from scalesim.memory.kinds import StateKind
from scalesim.testing.bed import Factories
from scalesim.testing.contracts import BrokenRuleError, try_link, try_policy, try_pool
from scalesim.testing.kind_contract import try_kind
from scalesim.testing.memory_walk import MemoryWalk
from scalesim.testing.memory_world import WorldShape
from scalesim.testing.walks import failure_of, shrink

SHAPES = (
    (6, 2.0, 4), (12, 1.0, 2), (16, 0.5, 4), (8, 1.0, 1), (24, 2.0, 2), (4, 0.0, 4),
)  # fmt: skip
"""Device pages, the host pool's size as a share of them, tokens per page. Tiny pools find most
faults."""


def check(options: CheckOptions) -> int:
    """Exit code 0, or 1 if a rule is broken or a walk failed. Raises ``ConfigError``."""
    start_s = time.monotonic()
    if options.kind == "kind":
        kind, num_values = _kind(load(options.object), options), max(1, options.steps // 10)
        reread: list[int] = []
        broken = broken_rule(options, lambda seed: reread.append(try_kind(kind, seed, num_values)))
        print(
            broken
            or f"kind {options.object}: {options.walks * num_values} values, {sum(reread)} with an "
            f"origin, in {time.monotonic() - start_s:.0f} s: nothing found"
        )
        return int(broken is not None)
    factories = factories_for(options)
    broken = broken_rule(options, partial(try_part, options, factories))
    if broken is not None:
        print(broken)
        return 1
    for number, walk in enumerate(walks(options), 1):
        failure = failure_of(walk, factories)
        if failure is not None:
            failure = shrink(failure, factories)
            asked = [f"{name}{arguments}" for name, arguments in failure.operations]
            print(report(options, number, "failed", failure.error, asked, f", on {walk.shape}"))
            return 1
    count = options.walks * (options.steps + 1)
    print(
        f"{options.kind} {options.object}: {options.walks} walks, {count} operations, everything "
        f"checked after each, in {time.monotonic() - start_s:.0f} s: nothing found"
    )
    return 0


def try_part(options: CheckOptions, factories: Factories, seed: int) -> None:
    """Test the part alone. Raises ``BrokenRuleError``."""
    if options.kind == "allocator":
        try_pool(factories.pool, seed, max(1, options.steps // 2))
    elif options.kind == "link":
        try_link(factories.link, seed, max(1, options.steps // 20))
    else:
        assert factories.policy is not None
        try_policy(factories.policy)


def broken_rule(options: CheckOptions, attempt: Callable[[int], None]) -> str | None:
    """A report of the broken rule with the fewest operations, of all seeds that were tried;
    ``None`` if no rule is broken."""
    found: list[tuple[int, BrokenRuleError]] = []
    for number, seed in enumerate(range(options.seed, options.seed + options.walks), 1):
        try:
            attempt(seed)
        except BrokenRuleError as error:
            found.append((number, error))
    if not found:
        return None
    number, broken = min(found, key=lambda pair: len(pair[1].operations))
    return report(options, number, "over it alone failed", broken, broken.operations)


def walks(options: CheckOptions) -> Iterator[MemoryWalk]:
    for seed in range(options.seed, options.seed + options.walks):
        pages, host, block_size = SHAPES[seed % len(SHAPES)]
        policy = ("deadline", "lru-swap")[seed // len(SHAPES) % 2]
        adapters, blobs, models = 3 * (seed % 4 == 3), 2 * (seed % 4 == 1), 2 * (seed % 4 == 2)
        shape = WorldShape(
            pages, host, block_size, policy, seed, adapters, blobs=blobs, models=models
        )
        yield MemoryWalk(shape, seed, options.steps)


def report(
    options: CheckOptions,
    number: int,
    how: str,
    error: BaseException,
    operations: Sequence[str],
    place: str = "",
) -> str:
    """The report of a failure: the walk's number, the error, the operations, and the command that
    repeats it."""
    what, seed = f"{options.kind} {options.object}", options.seed + number - 1
    lines = [
        f"{what}: walk {number} (seed {seed}) {how}:",
        f"  {type(error).__name__}: {error}",
        *([f"after these operations{place}:"] if operations else []),
        *(f"  {index:3} {asked}" for index, asked in enumerate(operations, 1)),
        f"again: scalesim check {what} --seed {seed} --walks 1 --steps {options.steps}",
    ]
    return "\n".join(lines)


def factories_for(options: CheckOptions) -> Factories:
    """The factories of the worlds: the user's object for one part, ScaleSim's for the others."""
    found = load(options.object)
    if options.kind == "allocator":
        return Factories(pool=_maker(found, options))
    if options.kind == "link":
        return Factories(link=_maker(found, options))
    return Factories(policy=_policy(found, options))


def load(name: str) -> Any:
    """The object named ``"module:attribute"``; modules of the working directory are found. Raises
    ``ConfigError``."""
    if ":" not in name:
        raise ConfigError(f"{name!r} names no object; write it like my_module:MyPool")
    sys.path.insert(0, "")
    try:
        return resolve_name(name)
    except (Exception, SystemExit) as error:  # importing runs the module, which may raise anything
        raise ConfigError(
            f"{name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove("")


def _maker(found: Any, options: CheckOptions) -> Any:
    if not callable(found):
        raise ConfigError(
            f"{options.object} is {found!r}; give a class, or a function that makes {options.kind}s"
        )
    return found


def _policy(found: Any, options: CheckOptions) -> Policy:
    try:
        policy = found() if callable(found) else found
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{options.object}() fails: {error!r}; give a Policy, or what makes one when it is "
            "called without arguments"
        ) from error
    if isinstance(policy, str):
        policy = policy_named(policy)
    if not isinstance(policy, Policy):
        raise ConfigError(f"{options.object} is {policy!r}; it must be a memory.policies.Policy")
    return policy


def _kind(found: Any, options: CheckOptions) -> StateKind:
    try:
        kind = found() if isinstance(found, type) else found
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{options.object}() fails: {error!r}; give a StateKind, or its class if that is made "
            "without arguments"
        ) from error
    if not isinstance(kind, StateKind):
        raise ConfigError(f"{options.object} is {kind!r}; it must be a scalesim.StateKind")
    return kind
