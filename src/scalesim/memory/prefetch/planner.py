"""The planner protocol: what decides which state is loaded ahead of its use, and when.

``MemoryParts`` makes one planner; each plan is given a forecast. ``Prefetcher`` is the engine's
planner, and a replay brings others for comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal, Protocol, TypeAlias

from scalesim.core import AgentId
from scalesim.memory.prefetch.config import PlannerConfig
from scalesim.memory.prefetch.queue import PrefetchQueue
from scalesim.memory.residency import Residency

BlockedBy: TypeAlias = 'Literal["link", "pool", "disk"] | None'
"""What keeps a load from starting whose turn has come."""


class Forecast(Protocol):
    """What the scheduler knows of requests to come. Times are in iterations of the engine's
    loop."""

    @property
    def num_waiting(self) -> int:
        """The number of requests that wait."""
        ...

    @property
    def upcoming(self) -> Collection[AgentId]:
        """The agents of the requests that are served next, in the order of service."""
        ...

    @property
    def has_more(self) -> bool:
        """Whether more requests wait than ``upcoming`` tells."""
        ...

    @property
    def waits_for_pages(self) -> bool:
        """Whether requests wait although a slot is free: for pages, or for their prefill."""
        ...

    def take_next(self, num_blocks: int) -> Collection[AgentId]:
        """The agents of the requests that are served next, as far as these take ``num_blocks``
        blocks, but only those that were not told before: each is told once, in the order of
        service. Beyond ``upcoming``, in a long line."""
        ...

    def starts_in(self, agent: AgentId) -> float | None:
        """Iterations until a waiting request of ``agent`` can start; ``None`` if there is none."""
        ...


class Unknown:
    """The forecast where nothing is known: an agent that is due starts at once."""

    num_waiting = 0
    upcoming: Collection[AgentId] = ()
    has_more = waits_for_pages = False

    def take_next(self, num_blocks: int) -> Collection[AgentId]:
        return ()

    def starts_in(self, agent: AgentId) -> float | None:
        return 0.0


UNKNOWN: Forecast = Unknown()


class Planner(Protocol):
    """Starts loads ahead of their use.

    ``blocked_by``: what kept a load from starting that had to start, as of the last ``plan``.
    """

    @property
    def blocked_by(self) -> BlockedBy: ...

    def plan(self, wall_s: float, forecast: Forecast) -> None:
        """Start what has to start now. Called once an iteration of the engine's loop, at ``wall_s``
        seconds."""
        ...


MakePlanner: TypeAlias = Callable[
    [Residency, PrefetchQueue, PlannerConfig, Callable[[], float]], Planner
]
"""Makes a planner; the last argument gives the bytes a second at which sources are read."""
