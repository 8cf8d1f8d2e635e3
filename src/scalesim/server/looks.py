"""Looks at all agents, for all who watch.

A look costs the engine's thread some microseconds an agent. So looks are shared, and taken at most
so often that they cost a hundredth of the time.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import Counter
from typing import Any, NamedTuple

from scalesim.distance.ledger import LATEST
from scalesim.engine.engine import Engine
from scalesim.engine.memory_view import AgentView, Census
from scalesim.server.identity import unscoped

MIN_INTERVAL_S = 0.5
COST = 100
"""A look that took so long is good for so many times as long."""
DISTANCES = (0, 1, 2, 4, 8, 16, 32, 64, 128)
"""Upper bounds, in ticks, of the bars of the page; behind them: later, put off, unknown."""
_BARS = ["now", *(f"≤ {ticks}" for ticks in DISTANCES[1:]), "later", "put off", "unknown"]


def place_of(view: AgentView) -> str:
    """Where an agent's state is, in one word."""
    pages = view.pages
    if not pages.total:
        return "nowhere"
    if pages.device == pages.total:
        return "device"
    if pages.host == pages.total:
        return "host"
    if pages.disk == pages.total:
        return "disk"
    return "loading" if pages.coming else "both"


def _letter(place: str) -> str:
    return "k" if place == "disk" else place[0]


def order_of(view: AgentView) -> tuple[bool, float]:
    """The soonest first; those whose next use nobody knows come last."""
    next_use = view.pages.next_use
    return (next_use is None, 0.0 if next_use is None else next_use)


class Ranked(NamedTuple):
    """The agents of one key, the soonest first. ``places`` has a letter for each: the first of its
    place, "k" for the disk, or "c" while the agent calls. ``distances`` counts letters by
    distance."""

    named: list[tuple[str, AgentView]]
    places: list[str]
    distances: list[dict[str, Any]]


class Look:
    """All agents at one moment, and what was made of that for each key so far."""

    def __init__(self, census: Census) -> None:
        self.census = census
        self._ranked: dict[str, Ranked] = {}

    def ranked(self, scope: str) -> Ranked:
        """The agents of the key of ``scope``. With many it takes its time: for a thread."""
        found = self._ranked.get(scope)
        if found is None:
            found = self._ranked[scope] = _ranked(self.census, scope)
        return found


class Looks:
    """The newest look at all agents of an engine."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._look: Look | None = None
        self._good_until_s = 0.0

    async def newest(self, engine: Engine) -> Look:
        """A look that is no older than it may be."""
        async with self._lock:
            begin_s = time.monotonic()
            if self._look is None or begin_s >= self._good_until_s:
                self._look = Look(await engine.memory.census_async())
                took_s = self._look.census.took_s
                self._good_until_s = begin_s + max(MIN_INTERVAL_S, COST * took_s)
            return self._look


def _ranked(census: Census, scope: str) -> Ranked:
    named = [
        (name, view) for view in census.agents if (name := unscoped(view.id, scope)) is not None
    ]
    named.sort(key=lambda row: order_of(row[1]))
    places = ["c" if view.open_calls else _letter(place_of(view)) for _, view in named]
    bars: list[Counter[str]] = [Counter() for _ in _BARS]
    for (_, view), place in zip(named, places, strict=True):
        next_use = view.pages.next_use
        if next_use is None:
            bars[-1][place] += 1
        elif next_use >= LATEST:
            bars[-2][place] += 1
        else:
            bars[bisect_left(DISTANCES, next_use - census.tick)][place] += 1
    counts = [{"name": name, **bar} for name, bar in zip(_BARS, bars, strict=True)]
    return Ranked(named, places, counts)
