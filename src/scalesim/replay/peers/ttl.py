"""A time to live after each call, and least recently used behind it.

After Continuum (arXiv 2511.02230): when a call ends, its state is kept for a time that is worth
more than it costs. Keeping state for a time t saves the reload, if the next call comes within t;
and it costs its share of the pool for as long as it is kept. How long a pause lasts is taken from
the agent's own pauses so far, or from everybody's where the agent has few. State whose time is
over leaves in the order of its last use; if all state is within its time, the state whose time
ends first leaves first.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection

from scalesim.core import AgentId
from scalesim.memory.eviction.policies import Policy
from scalesim.memory.eviction.ranking import EvictionRanking
from scalesim.memory.prefetch.planner import UNKNOWN, Forecast
from scalesim.memory.prefetch.prefetcher import Prefetcher
from scalesim.memory.timing import Timing
from scalesim.memory.tree.next_use import NextUse
from scalesim.memory.tree.prefix_tree import PrefixTree
from scalesim.memory.tree.segment import Segment

TTL = Policy("ttl", order="last_use", host=True, look_ahead=False)

_PAUSES = 256  # the newest pauses of everybody
_OWN_PAUSES = 16  # the newest of an agent
_FEW = 3  # an agent with fewer is taken to be like everybody
_WITHIN = -1e18  # before the next use of anything else


class TtlRanking(EvictionRanking):
    """An eviction ranking with a time to live for each segment that was used.

    ``now_s`` is the engine's wall time. ``reload_s``: seconds of a reload of the
    whole pool, behind what the link has to do already.
    """

    def __init__(self, tree: PrefixTree, policy: Policy, timing: Timing) -> None:
        super().__init__(tree, policy, timing)
        self.now_s = 0.0
        self.reload_s = 0.0
        self._pauses: deque[float] = deque(maxlen=_PAUSES)
        self._own: dict[AgentId, deque[float]] = {}
        self._ended_s: dict[Segment, float] = {}
        self._expires: dict[Segment, float] = {}
        self._queue: list[tuple[float, int, Segment]] = []

    def next_use(self, segment: Segment) -> NextUse:
        expires = self._expires.get(segment)
        time = None if expires is None else _WITHIN * (1.0 + expires)
        return NextUse(time, 0, segment.last_use, segment.last_seq)

    def pin(self, segment: Segment) -> None:
        if (ended_s := self._ended_s.pop(segment, None)) is not None:
            pause_s = self.now_s - ended_s
            self._pauses.append(pause_s)
            if (owner := segment.owners.sole) is not None:
                self._own.setdefault(owner.id, deque(maxlen=_OWN_PAUSES)).append(pause_s)
        super().pin(segment)

    def unpin(self, segment: Segment) -> None:
        super().unpin(segment)
        if segment.pins:
            return
        self._ended_s[segment] = self.now_s
        owner = segment.owners.sole
        pauses = self._own.get(owner.id, ()) if owner is not None else ()
        ttl_s = best_ttl(pauses if len(pauses) >= _FEW else self._pauses, self.reload_s)
        if ttl_s > 0.0:
            expires = self._expires[segment] = self.now_s + ttl_s
            heapq.heappush(self._queue, (expires, self.next_seq(), segment))
        else:
            self._expires.pop(segment, None)

    def forget(self, segment: Segment) -> None:
        super().forget(segment)
        self._ended_s.pop(segment, None)
        self._expires.pop(segment, None)

    def expire(self) -> None:
        """End the time to live of all segments for which it is over."""
        while self._queue and self._queue[0][0] <= self.now_s:
            expires, _, segment = heapq.heappop(self._queue)
            if self._expires.get(segment) == expires:  # else it was used again, or is gone
                del self._expires[segment]
                self.refresh(segment)


def best_ttl(pauses: Collection[float], reload_s: float) -> float:
    """The time to live, in seconds, that is worth most if pauses are as ``pauses``.

    State of a share x of the pool that is kept for t seconds saves ``x * reload_s`` if its pause is
    no longer than t, and takes ``x * min(pause, t)`` of the pool's time; x cancels. 0 where no time
    is worth anything.
    """
    best_s, most = 0.0, 0.0
    count, within_s = len(pauses), 0.0
    for index, pause_s in enumerate(sorted(pauses), 1):
        within_s += pause_s
        worth_s = index * reload_s - within_s - (count - index) * pause_s
        if worth_s > most:
            best_s, most = pause_s, worth_s
    return best_s


class TtlClock(Prefetcher):
    """A planner without loads ahead: it tells a ``TtlRanking`` the time."""

    def plan(self, wall_s: float, forecast: Forecast = UNKNOWN) -> None:
        residency, ranking = self.residency, self.residency.ranking
        assert isinstance(ranking, TtlRanking)
        whole = residency.device.num_usable * residency.page_bytes
        ranking.reload_s = (whole + residency.link.queued_bytes("in")) / residency.link.rate("in")
        ranking.now_s = wall_s
        ranking.expire()
        super().plan(wall_s, forecast)
