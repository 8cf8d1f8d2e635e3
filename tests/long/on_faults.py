"""The Nth-call fault sweep as a campaign: a seed is one faulted run."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache

from tests.trust import faults
from tests.trust.workload import Text, oracle

Case = tuple[str, int, faults.Mode, int]
"""A point, the call that fails, once or for ever, steps in flight."""


@cache
def cases() -> list[Case]:
    """Every call that the workload makes of every point (of one that it calls more than a hundred
    times: about a hundred of them), once and for ever, with one step in flight and with two;
    shuffled, so that a part of the sweep is a sample of it."""
    found = [
        (name, nth, mode, flights)
        for flights in (1, 2)
        for name, calls in faults.reach(flights).items()
        for nth in range(1, calls + 1, max(1, calls // 100))
        for mode in faults.MODES
    ]
    random.Random(0).shuffle(found)
    return found


@cache
def texts() -> dict[str, list[Text]]:
    return oracle()


def run(seed: int) -> Counter[str]:
    """The ``seed``-th case; beyond the last, the first again with another order of copies."""
    rounds, index = divmod(seed, len(cases()))
    name, nth, mode, flights = cases()[index]
    try:
        outcome = faults.run(faults.points()[name], nth, mode, texts(), flights, seed=rounds)
    except Exception as error:
        error.args = (f"{name}, call {nth}, {mode}, {flights} in flight: {error}",)
        raise
    return Counter(
        {
            "faulted runs": 1,
            f"{mode}": 1,
            f"{mode}: began anew": outcome.restarts > 0,
            f"{mode}: an agent got a typed error": outcome.hit > 0,
            f"{mode}: engine died, every call was told": outcome.died,
        }
    )
