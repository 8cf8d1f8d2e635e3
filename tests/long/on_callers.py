"""The sweep of bad callers as a campaign: a seed is one run of the workload beside one of them."""

from __future__ import annotations

from collections import Counter
from functools import cache

from tests.trust import callers
from tests.trust.workload import Text, oracle

CASES = [(name, checked, flights) for flights in (1, 2) for name, checked in callers.CASES]


@cache
def texts() -> dict[str, list[Text]]:
    return oracle()


def run(seed: int) -> Counter[str]:
    """The ``seed``-th case; beyond the last, the first again."""
    name, checked, flights = CASES[seed % len(CASES)]
    refused, ended = callers.run([name], checked, texts(), flights)
    return Counter(
        {
            "bad callers": 1,
            "calls refused": refused.total(),
            "calls ended alone": ended.total(),
        }
    )
