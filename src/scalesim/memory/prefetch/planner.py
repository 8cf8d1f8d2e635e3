"""A planner: what decides which state is loaded before it is asked for, and when.

The seam: the manager is given a planner, and the planner a forecast each time that it plans.
``Prefetcher`` is the engine's; a replay brings others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

from scalesim.core import AgentId
from scalesim.memory.prefetch.config import PlannerConfig
from scalesim.memory.prefetch.queue import PrefetchQueue
from scalesim.memory.residency import Residency

BlockedBy: TypeAlias = 'Literal["link", "pool"] | None'
"""What keeps an open start window waiting."""


class Forecast(Protocol):
    """What is known of the requests to come, by whoever admits them. Times in iterations of the
    engine's loop."""

    @property
    def begin_at_once(self) -> int:
        """How many requests can start when the simulation's clock moves."""
        ...

    def starts_in(self, agent: AgentId) -> float:
        """Until a waiting request of ``agent`` can start."""
        ...

    def drains_in(self) -> float:
        """Until all requests have ended."""
        ...


class Unknown:
    """The forecast where nobody says anything: who is due starts at once, and alone."""

    begin_at_once = 1

    def starts_in(self, agent: AgentId) -> float:
        return 0.0

    def drains_in(self) -> float:
        return float("inf")


UNKNOWN: Forecast = Unknown()


class Planner(Protocol):
    """Starts loads ahead of their use. ``opens_in_s`` is the time to the next start window,
    ``None`` if no agent is awaited; ``blocked_by`` what keeps an open window waiting. Both as of
    the last ``plan``."""

    @property
    def opens_in_s(self) -> float | None: ...

    @property
    def blocked_by(self) -> BlockedBy: ...

    def plan(self, wall_s: float, forecast: Forecast) -> None:
        """Once an iteration of the engine's loop: start what has to start now."""
        ...

    def observe_arrival(self, *, late: bool) -> None:
        """An agent with a known next use called: was its state there?"""
        ...


MakePlanner: TypeAlias = Callable[
    [Residency, PrefetchQueue, PlannerConfig, Callable[[], float]], Planner
]
"""The last argument gives the bytes a second at which sources are read."""
