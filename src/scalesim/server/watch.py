"""The built-in page at ``/``, and ``/watch.json``, the one endpoint that it polls; ``/metrics``.

A look at all agents costs the engine's thread some microseconds an agent. So looks are shared by
all who watch, and taken at most so often that they cost a hundredth of the time.
"""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from bisect import bisect_left
from collections import Counter
from dataclasses import asdict
from hashlib import sha256
from importlib.resources import files
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from scalesim._version import __version__
from scalesim.checks import shown
from scalesim.distance.ledger import LATEST
from scalesim.engine.memory_view import AgentView, Census
from scalesim.server.agents import place_of
from scalesim.server.endpoint import Endpoint
from scalesim.server.errors import bad
from scalesim.server.hints import scope_of
from scalesim.server.identity import unscoped
from scalesim.server.metrics import CONTENT_TYPE
from scalesim.server.service import Service

MIN_INTERVAL_S = 0.5
COST = 100
"""A look that took so long is good for so many times as long."""
MAX_ROWS = 500
MAX_CELLS = 20_000
DISTANCES = (0, 1, 2, 4, 8, 16, 32, 64, 128)
"""Upper bounds, in ticks, of the bars of the page; behind them: later, put off, unknown."""
_PLACES = {"device": "d", "both": "b", "loading": "l", "host": "h", "nowhere": "n"}


class Watch:
    """The newest look at all agents, for all who watch."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._census: Census | None = None
        self._good_until_s = 0.0

    async def census(self, service: Service) -> Census:
        """A look at all agents that is not older than it may be."""
        async with self._lock:
            begin_s = time.monotonic()
            if self._census is None or begin_s >= self._good_until_s:
                self._census = await service.engine.memory.census_async()
                took_s = self._census.took_s
                self._good_until_s = begin_s + max(MIN_INTERVAL_S, COST * took_s)
            return self._census


async def watch(service: Service, request: HttpRequest) -> Response:
    """Answer ``GET /watch.json``: with ``q``, the agents whose name has it; at most ``limit``."""
    wanted, limit = request.query_params.get("q", ""), request.query_params.get("limit", "100")
    if not limit.isdecimal() or not 1 <= int(limit[:9]) <= MAX_ROWS:
        raise bad(f"limit={shown(limit)} must be a whole number from 1 to {MAX_ROWS}", "limit")
    census, engine = await service.watch.census(service), service.engine
    scope = scope_of(request)
    named = [
        (name, view) for view in census.agents if (name := unscoped(view.id, scope)) is not None
    ]
    named.sort(key=lambda row: _order(row[1]))
    places = [_place(view) for _, view in named]
    found = [row for row in zip(named, places, strict=True) if wanted in row[0][0]]
    memory, stats = engine.memory, engine.stats
    scores = engine.source_scores()
    return JSONResponse(
        {
            "version": __version__,
            "model": service.config.names[0],
            "state": service.health(),
            "time": time.time(),
            "tick": census.tick,
            "seconds_per_tick": engine.clock.seconds_per_tick,
            "running": census.running,
            "waiting": census.waiting,
            "open": service.open.count,
            "refused": service.open.refused,
            "latency": service.metrics.recent(),
            "tiers": [
                {
                    "name": tier.name,
                    "bytes": tier.num_pages * memory.page_bytes,
                    "used": (tier.num_pages - tier.num_free) * memory.page_bytes,
                }
                for tier in memory.tiers.values()
            ],
            "queued": memory.queued_bytes,
            "stats": asdict(stats),
            "sources": [
                {
                    "name": name,
                    "on_time": score.on_time,
                    "early": score.early,
                    "late": score.late,
                    "never": score.never,
                    "trust": score.trust,
                    "silent": score.silent,
                }
                for name, score in scores.items()
            ],
            "page_bytes": memory.page_bytes,
            "count": len(named),
            "places": Counter(places),
            "cells": "".join(places[:MAX_CELLS]),
            "distances": _distances(named, places, census.tick),
            "found": len(found),
            "agents": [
                _row(name, view, place) for (name, view), place in found[: int(limit)]
            ],
        }
    )


def _place(view: AgentView) -> str:
    return "c" if view.open_calls else _PLACES[place_of(view)]


def _row(name: str, view: AgentView, place: str) -> dict[str, Any]:
    pages = view.pages
    return {
        "name": name,
        "place": place,
        "pages": [pages.device, pages.coming, pages.host],
        "next": None if pages.next_use is None else min(pages.next_use, LATEST),
        "calls": view.open_calls,
        "pinned": round(view.pinned_s),
    }


def _distances(
    named: list[tuple[str, AgentView]], places: list[str], now: float
) -> list[dict[str, Any]]:
    """How many agents there are at each distance, by place."""
    bars: list[Counter[str]] = [Counter() for _ in range(len(DISTANCES) + 3)]
    for (_, view), place in zip(named, places, strict=True):
        next_use = view.pages.next_use
        if next_use is None:
            bars[-1][place] += 1
        elif next_use >= LATEST:
            bars[-2][place] += 1
        else:
            bars[bisect_left(DISTANCES, next_use - now)][place] += 1
    names = ["now", *(f"≤ {ticks}" for ticks in DISTANCES[1:]), "later", "put off", "unknown"]
    return [{"name": name, **bar} for name, bar in zip(names, bars, strict=True)]


def _order(view: AgentView) -> tuple[bool, float]:
    next_use = view.pages.next_use
    return (next_use is None, 0.0 if next_use is None else next_use)


async def metrics(service: Service, request: HttpRequest) -> Response:
    """Answer ``GET /metrics``."""
    service.metrics.engine.engine = service.engine_if_ready
    text = await service.off_loop(1 << 20, service.metrics.text)
    return Response(text, headers={"content-type": CONTENT_TYPE})


# -- the page ------------------------------------------------------------------------------------

PAGE = files("scalesim.server").joinpath("page", "index.html").read_bytes()


def _hash_of(tag: str) -> str:
    """What a browser compares the page's own script, or style, with."""
    inner = PAGE.split(f"<{tag}>".encode())[1].split(f"</{tag}>".encode())[0]
    return f"'sha256-{b64encode(sha256(inner).digest()).decode()}'"


_HEADERS = {
    "content-type": "text/html; charset=utf-8",
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": (
        f"default-src 'none'; script-src {_hash_of('script')}; style-src {_hash_of('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
}


async def page(service: Service, request: HttpRequest) -> Response:
    """Answer ``GET /``."""
    return Response(PAGE, headers=_HEADERS)


ENDPOINTS = [
    Endpoint("/", ("GET",), page),
    Endpoint("/watch.json", ("GET",), watch),
    Endpoint("/metrics", ("GET",), metrics),
]
