"""An endpoint: a row of the table of routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from starlette.requests import Request
from starlette.responses import Response

if TYPE_CHECKING:
    from scalesim.server.service import Service

AccessClass = Literal["open", "key", "admin"]
"""Who may use an endpoint: anybody, holders of a key, or holders of an admin key."""
Handler: TypeAlias = "Callable[[Service, Request], Awaitable[Response]]"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``handler`` answers ``methods`` of ``path``, for those who have ``access``. What is
    ``queued`` takes one of the places for open requests until its reply is sent. ``in_browser``: it
    is opened in a browser, which can give a key as a password only; it changes nothing."""

    path: str
    methods: tuple[str, ...]
    handler: Handler
    access: AccessClass = "key"
    queued: bool = False
    in_browser: bool = False


def for_agents(*endpoints: Endpoint) -> list[Endpoint]:
    """``endpoints``, and each of them again below ``/agents/{agent}``: a base URL that says who
    calls."""
    ours = [
        Endpoint(f"/agents/{{agent}}{row.path}", row.methods, row.handler, row.access, row.queued)
        for row in endpoints
    ]
    return [*endpoints, *ours]
