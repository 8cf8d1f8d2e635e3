"""The built-in page at ``/``, ``/watch.json``, the one endpoint that it polls, and ``/metrics``."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections import Counter
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from importlib.resources import files
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from scalesim._version import __version__
from scalesim.checks import shown
from scalesim.distance.ledger import LATEST
from scalesim.engine.memory_view import AgentView
from scalesim.server.endpoint import Endpoint
from scalesim.server.errors import bad
from scalesim.server.hints import scope_of
from scalesim.server.looks import Look
from scalesim.server.metrics import CONTENT_TYPE
from scalesim.server.service import Service

MAX_ROWS = 500
MAX_CELLS = 20_000


async def watch(service: Service, request: HttpRequest) -> Response:
    """Answer ``GET /watch.json``: with ``q``, the agents whose name has it; at most ``limit``."""
    wanted, limit = request.query_params.get("q", ""), request.query_params.get("limit", "100")
    if not limit.isdecimal() or not 1 <= int(limit[:9]) <= MAX_ROWS:
        raise bad(f"limit={shown(limit)} must be a whole number from 1 to {MAX_ROWS}", "limit")
    look = await service.looks.newest(service.engine)
    told = partial(_told, service, look, scope_of(request), wanted, int(limit))
    return Response(
        await service.off_loop(1 << 20, told), headers={"content-type": "application/json"}
    )


def _told(service: Service, look: Look, scope: str, wanted: str, limit: int) -> bytes:
    """On a thread: with many agents this takes its time."""
    engine = service.engine
    view, stats = engine.memory, engine.stats
    census, ranked = look.census, look.ranked(scope)
    rows = zip(ranked.named, ranked.places, strict=True)
    found = [row for row in rows if wanted in row[0][0]]
    return json.dumps(
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
                    "bytes": tier.num_pages * view.page_bytes,
                    "used": (tier.num_pages - tier.num_free) * view.page_bytes,
                }
                for tier in view.tiers.values()
            ],
            "queued": view.queued_bytes,
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
                for name, score in engine.source_scores().items()
            ],
            "page_bytes": view.page_bytes,
            "count": len(ranked.named),
            "places": Counter(ranked.places),
            "cells": "".join(ranked.places[:MAX_CELLS]),
            "distances": ranked.distances,
            "found": len(found),
            "agents": [_row(name, view, place) for (name, view), place in found[:limit]],
        }
    ).encode()


def _row(name: str, view: AgentView, place: str) -> dict[str, Any]:
    pages = view.pages
    return {
        "name": name,
        "place": place,
        "pages": [pages.device, pages.coming, pages.host, pages.disk],
        "next": None if pages.next_use is None else min(pages.next_use, LATEST),
        "calls": view.open_calls,
        "pinned": round(view.pinned_s),
    }


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
    Endpoint("/", ("GET",), page, in_browser=True),
    Endpoint("/watch.json", ("GET",), watch, in_browser=True),
    Endpoint("/metrics", ("GET",), metrics),
]
