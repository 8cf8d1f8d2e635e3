"""The planner protocol: what decides which state is loaded ahead of its use, and when.

``MemoryParts`` makes one planner; each plan is given a forecast. ``Prefetcher`` is the engine's
planner, and a replay brings others for comparison.
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
    """What the scheduler knows of requests to come. Times are in iterations of the engine's
    loop."""

    @property
    def begin_at_once(self) -> int:
        """The number of requests that can start together when the simulation's clock moves."""
        ...

    def starts_in(self, agent: AgentId) -> float:
        """Iterations until a waiting request of ``agent`` can start."""
        ...

    def drains_in(self) -> float:
        """Iterations until all open requests have ended."""
        ...


class Unknown:
    """The forecast where nothing is known: an agent that is due starts at once, and alone."""

    begin_at_once = 1

    def starts_in(self, agent: AgentId) -> float:
        return 0.0

    def drains_in(self) -> float:
        return float("inf")


UNKNOWN: Forecast = Unknown()


class Planner(Protocol):
    """Starts loads ahead of their use.

    ``opens_in_s``: seconds to the next start window, ``None`` if no agent is awaited.
    ``blocked_by``: what keeps an open window waiting. Both are as of the last ``plan``.
    """

    @property
    def opens_in_s(self) -> float | None: ...

    @property
    def blocked_by(self) -> BlockedBy: ...

    def plan(self, wall_s: float, forecast: Forecast) -> None:
        """Start what has to start now. Called once an iteration of the engine's loop, at ``wall_s``
        seconds."""
        ...

    def observe_arrival(self, *, late: bool) -> None:
        """An agent with a known next use called. ``late``: its state was not on the device yet."""
        ...


MakePlanner: TypeAlias = Callable[
    [Residency, PrefetchQueue, PlannerConfig, Callable[[], float]], Planner
]
"""Makes a planner; the last argument gives the bytes a second at which sources are read."""
