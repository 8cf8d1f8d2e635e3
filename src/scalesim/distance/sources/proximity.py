"""A source for agents in space, from their positions and speeds: two agents that meet will talk.

The earliest time at which two agents can meet is (distance - radius) / (sum of their speeds), where
agents notice each other within the radius (Generative Agents' vision radius; the ScaleSim paper's
"physical distance over speed", with one speed for all). After a call, an agent does not talk again
before its cooldown has passed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from scalesim.checks import Error, number, numbers, reading
from scalesim.core import AgentId, Int64s
from scalesim.distance.calendar import Calendar
from scalesim.distance.estimates import NOTHING, Estimates, Source, Times
from scalesim.distance.roster import Roster
from scalesim.distance.sources.grid import Grid, Points
from scalesim.errors import ConfigError, RequestError

_SAME = 0.1  # changes below this share of the distance are not reported


class Proximity(Source):
    """Agents in a plane that talk when they meet.

    ``positions`` ``[n, 2]`` and ``radius`` share a unit of length; ``max_speed`` and ``speeds``
    (one for all or ``[n]``; ``max_speed`` if ``None``) are in that unit per tick; ``horizon`` and
    ``cooldown`` are in ticks. An agent that can meet no other within ``horizon`` has no prediction.
    ``confidence`` is the share of possible meetings that take place. An update costs in proportion
    to the agents that moved and those near them. Raises ``ConfigError`` for wrong arguments.
    """

    def __init__(
        self,
        agents: Sequence[AgentId],
        positions: npt.ArrayLike,
        *,
        radius: float,
        max_speed: float,
        speeds: npt.ArrayLike | None = None,
        horizon: float = 8.0,
        cooldown: float = 0.0,
        name: str = "proximity",
        confidence: float = 0.5,
    ) -> None:
        super().__init__(name)
        radius = number("radius", radius, 0.0, error=ConfigError, above=True)
        max_speed = number("max_speed", max_speed, 0.0, error=ConfigError, above=True)
        horizon = number("horizon", horizon, 0.0, error=ConfigError, above=True)
        self._confidence = number("confidence", confidence, 0.0, 1.0, ConfigError)
        self._cooldown = number("cooldown", cooldown, 0.0, error=ConfigError)
        self._radius, self._max_speed, self._horizon = radius, max_speed, horizon
        self._roster = Roster.of(agents)
        count = len(self._roster)
        points = _points(positions, count, ConfigError)
        fastest = max_speed if speeds is None else speeds
        self._speeds = self._checked_speeds(fastest, count, ConfigError)
        self._grid = Grid(points, radius + 2.0 * max_speed * horizon)
        self._ready = np.zeros(count)  # when the cooldown is over
        self._at: Times = np.full(count, np.nan)
        self._partner = np.full(count, -1, np.int64)
        self._met = np.full(count, -1, np.int64)  # a partner nearby with whom no talk came about
        self._due = Calendar()
        self._stale: list[Int64s] = [np.arange(count)]

    def move(
        self,
        agents: Sequence[AgentId],
        positions: npt.ArrayLike,
        speeds: npt.ArrayLike | None = None,
    ) -> None:
        """Set the positions ``[n, 2]`` of ``agents`` (distinct), and their ``speeds``, one for all
        or ``[n]``; ``None`` leaves the speeds. The arrays are copied. Raises ``RequestError`` for
        wrong arguments."""
        moved = self._roster.known(agents)
        if len(np.unique(moved)) < len(moved):
            raise RequestError("agents: one is named twice; give each once")
        points = _points(positions, len(moved), RequestError)
        fast = None
        if speeds is not None:
            fast = self._checked_speeds(speeds, len(moved), RequestError)
        self._tell(lambda now: self._move(moved, points, fast))

    def called(self, agent: AgentId, now: float) -> None:
        row = self._roster.get(agent)
        if row is not None:
            self._ready[row] = now + self._cooldown
            self._stale.append(np.array([row]))

    def forget(self, agents: Sequence[AgentId]) -> None:
        """Predict no meetings of ``agents`` until they call again."""
        for agent in agents:
            row = self._roster.get(agent)
            if row is not None:
                self._ready[row] = np.inf
                self._stale.append(np.array([row]))

    def changes(self, now: float) -> Estimates:
        self._read_mail(now)
        due, times = self._due.take(now)
        due = due[self._at[due] == times]
        self._met[due] = self._partner[due]  # the predicted time passed without a call
        rows = np.unique(np.concatenate([*self._stale, due]))
        self._stale = []
        return self._renew(rows, now) if len(rows) else NOTHING

    def _move(self, rows: Int64s, points: Points, speeds: Times | None) -> None:
        self._grid.move(rows, points)
        if speeds is not None:
            self._speeds[rows] = speeds
        self._stale.append(rows)
        is_moved = np.zeros(len(self._partner) + 1, np.bool_)
        is_moved[rows] = True
        self._stale.append(np.flatnonzero(is_moved[self._partner]))  # row -1 is nobody's

    def _renew(self, rows: Int64s, now: float) -> Estimates:
        """Predict anew: for ``rows`` from all their neighbours; for the neighbours, where a meeting
        with one of ``rows`` is earlier than the predicted one."""
        pairs = list(self._grid.pairs(rows))
        mine = np.concatenate([pair for pair, _ in pairs])
        others = np.concatenate([other for _, other in pairs])
        touched = np.unique(np.concatenate([rows, others]))
        old = self._at[touched]
        self._at[rows], self._partner[rows] = np.nan, -1
        when = self._meet(mine, others, now)
        soon = when <= now + self._horizon
        mine, others, when = mine[soon], others[soon], when[soon]
        order = np.argsort(-when, kind="stable")  # so that the last assignment is the earliest
        mine, others, when = mine[order], others[order], when[order]
        for who, whom in ((mine, others), (others, mine)):
            sooner = ~(self._at[who] <= when)
            self._at[who[sooner]] = when[sooner]
            self._partner[who[sooner]] = whom[sooner]
        return self._emit(touched, old, now)

    def _emit(self, touched: Int64s, old: Times, now: float) -> Estimates:
        """Estimates for the rows whose time differs enough from ``old``, the reported one; the
        other rows keep their reported time."""
        at = self._at[touched]
        same = np.abs(at - old) <= np.maximum(0.5, _SAME * (at - now))
        same |= np.isnan(at) & np.isnan(old)
        self._at[touched[same]] = old[same]
        changed, at = touched[~same], at[~same]
        given = ~np.isnan(at)
        self._due.put(changed[given], at[given], now)
        return Estimates(self._roster.names(changed.tolist()), at, self._confidence)

    def _meet(self, mine: Int64s, others: Int64s, now: float) -> Times:
        """The earliest time at which each pair can meet, ``[n]``; infinite for a pair that has
        stayed together since its last predicted meeting."""
        gap = np.hypot(*(self._grid.points[mine] - self._grid.points[others]).T) - self._radius
        parted = gap > 0.0
        speed = self._speeds[mine] + self._speeds[others]
        ticks = np.divide(gap, speed, out=np.full(len(gap), np.inf), where=parted & (speed > 0.0))
        had = (self._met[mine] == others) | (self._met[others] == mine)
        over = parted & had
        self._met[mine[over]] = self._met[others[over]] = -1
        ready = np.maximum(self._ready[mine], self._ready[others])
        meet: Times = np.maximum(now + np.where(parted, ticks, 0.0), ready)
        meet[had & ~parted] = np.inf
        return meet

    def _checked_speeds(self, speeds: npt.ArrayLike, count: int, error: Error) -> Times:
        return numbers(
            f"speed (max_speed={self._max_speed})", speeds, count, 0.0, self._max_speed, error
        )


def _points(positions: npt.ArrayLike, count: int, error: Error) -> Points:
    with reading("positions", error):
        points = np.array(positions, np.float64)
    if points.shape != (count, 2) or not np.isfinite(points).all():
        raise error(
            f"positions of shape {points.shape} for {count} agents; they must be [{count}, 2] and "
            "finite"
        )
    return points
