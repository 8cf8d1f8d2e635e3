"""Clients of the server as campaigns: those who leave, and those who come all at once."""

from __future__ import annotations

from collections import Counter

from tests.engine.world import tiny_engine
from tests.server.visits import crowd, random_visits
from tests.server.world import serving

CROWDS = (500, 1_000, 2_000, 10_000)


def disconnects(seed: int) -> Counter[str]:
    """500 clients of one server, most of whom leave."""
    with tiny_engine() as engine, serving(engine) as running:
        return random_visits(running, seed, 500)


def gather(seed: int) -> Counter[str]:
    """One ``gather`` of as many calls as the seed's crowd has."""
    with tiny_engine() as engine, serving(engine) as running:
        return crowd(running, CROWDS[min(seed, len(CROWDS) - 1)])
