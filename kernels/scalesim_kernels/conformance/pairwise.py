"""Covering arrays: few cases that hold every pair of values of any two factors.

Most faults of such code need two things to coincide (Kuhn, Wallace and Gallo, "Software fault
interactions and implications for software testing", IEEE TSE 2004); the full product has hundreds
of cases and hardly finds more.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Combination = dict[str, Any]


def product(factors: Mapping[str, Sequence[Any]]) -> Iterator[Combination]:
    for values in itertools.product(*factors.values()):
        yield dict(zip(factors, values, strict=True))


def pairwise(factors: Mapping[str, Sequence[Any]], tries: int = 40) -> list[Combination]:
    """A small list in which every pair of values occurs. The same one every time.

    Greedy: of ``tries`` random completions of a pair that is still missing, the one with most
    missing pairs.
    """
    rng = random.Random(0)
    names = list(factors)
    missing = {
        frozenset(((a, i), (b, j)))
        for a, b in itertools.combinations(names, 2)
        for i in range(len(factors[a]))
        for j in range(len(factors[b]))
    }
    cases = []
    while missing:
        first = min(missing, key=sorted)
        best: tuple[int, dict[str, int]] = (-1, {})
        for _ in range(tries):
            chosen = {name: rng.randrange(len(factors[name])) for name in names} | dict(first)
            covered = sum(pair in missing for pair in pairs_of(chosen))
            best = max(best, (covered, chosen), key=lambda entry: entry[0])
        missing -= set(pairs_of(best[1]))
        cases.append({name: factors[name][i] for name, i in best[1].items()})
    return cases


def pairs_of(chosen: Mapping[str, int]) -> Iterator[frozenset[tuple[str, int]]]:
    for pair in itertools.combinations(chosen.items(), 2):
        yield frozenset(pair)
