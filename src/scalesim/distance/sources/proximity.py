"""A source for agents in space: two that meet will talk. Positions and speeds to next uses.

The earliest that two agents can meet is their distance, less the radius at which they notice each
other, over the sum of their speeds (Generative Agents' vision radius; the ScaleSim paper's
"physical distance over speed", there with one speed for all). An agent that just talked is not
ready again before its cooldown is over.
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

_SAME = 0.1  # of the distance: a change by less is not passed on


class Proximity(Source):
    """``agents`` at ``positions`` ``[n, 2]``; these and ``radius`` in one unit of length,
    ``horizon`` and ``cooldown`` in ticks, ``max_speed`` and ``speeds`` (one for all or ``[n]``; the
    most if ``None``) in units a tick. Who can meet nobody within ``horizon`` is not spoken of.

    ``confidence`` is how often who can meet does meet. Costs what moved and who is near it.
    Raises ``ConfigError``.
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
        self._met = np.full(count, -1, np.int64)  # who it stands with, without talking
        self._due = Calendar()
        self._stale: list[Int64s] = [np.arange(count)]

    def move(
        self,
        agents: Sequence[AgentId],
        positions: npt.ArrayLike,
        speeds: npt.ArrayLike | None = None,
    ) -> None:
        """``agents`` (each once) are at ``positions`` ``[n, 2]`` now, and go at ``speeds``, one for
        all or ``[n]``; unchanged if ``None``. Copied. Raises ``RequestError``."""
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
        """They meet nobody, until they call again."""
        for agent in agents:
            row = self._roster.get(agent)
            if row is not None:
                self._ready[row] = np.inf
                self._stale.append(np.array([row]))

    def changes(self, now: float) -> Estimates:
        self._read_mail(now)
        due, times = self._due.take(now)
        due = due[self._at[due] == times]
        self._met[due] = self._partner[due]  # and nothing came of it
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
        """Meet again: for ``rows`` the earliest of all, for those near them the earlier one."""
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
        """What differs enough from ``old`` to be told; the rest stays as it was told."""
        at = self._at[touched]
        same = np.abs(at - old) <= np.maximum(0.5, _SAME * (at - now))
        same |= np.isnan(at) & np.isnan(old)
        self._at[touched[same]] = old[same]
        changed, at = touched[~same], at[~same]
        given = ~np.isnan(at)
        self._due.put(changed[given], at[given], now)
        return Estimates(self._roster.names(changed.tolist()), at, self._confidence)

    def _meet(self, mine: Int64s, others: Int64s, now: float) -> Times:
        """When each pair can meet; never, if it stands together since it last could."""
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
