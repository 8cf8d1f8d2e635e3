"""Sources for agents that act with a probability in each tick (OASIS, other social simulations)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from scalesim.checks import Error, agent_ids, function, numbers, whole
from scalesim.core import AgentId, Int64s
from scalesim.distance.calendar import Calendar
from scalesim.distance.estimates import NOTHING, DatedSource, Estimates, Source, Times
from scalesim.distance.roster import Roster
from scalesim.distance.scores import MIN_TOLERANCE_TICKS, TOLERANCE
from scalesim.errors import ConfigError, RequestError


class Activation(Source):
    """Agents that act in each tick with a given probability.

    ``probability`` is one for all of ``agents``, or ``[n]``. An agent is expected after 1/p ticks;
    the confidence is the probability that this is about right, which is low (0.25 for p = 0.1). If
    the draws can be made ahead, ``Predrawn`` is exact. Raises ``ConfigError`` for wrong arguments.
    """

    def __init__(
        self, agents: Sequence[AgentId], probability: npt.ArrayLike, *, name: str = "activation"
    ) -> None:
        super().__init__(name)
        self._roster = Roster.of(agents)
        count = len(self._roster)
        self._rate = _probabilities(probability, count, ConfigError)
        self._at: Times = np.full(count, np.nan)
        self._due = Calendar()
        self._stale: list[Int64s] = [np.arange(count)]

    def set(self, agents: Sequence[AgentId], probability: npt.ArrayLike) -> None:
        """Have ``agents`` act with ``probability`` (one for all, or ``[n]``) from now on. Raises
        ``RequestError`` for an unknown agent or a value outside 0 … 1."""
        rows = self._roster.known(agents)
        rate = _probabilities(probability, len(rows), RequestError)

        def note(now: float) -> None:
            self._rate[rows] = rate
            self._stale.append(rows)

        self._tell(note)

    def called(self, agent: AgentId, now: float) -> None:
        row = self._roster.get(agent)
        if row is not None:
            self._stale.append(np.array([row]))

    def forget(self, agents: Sequence[AgentId]) -> None:
        """Set the agents' probability to 0; ``set`` can raise it again."""
        for agent in agents:
            row = self._roster.get(agent)
            if row is not None:
                self._rate[row], self._at[row] = 0.0, np.nan

    def changes(self, now: float) -> Estimates:
        """New estimates for agents that called, whose probability changed, or that did not act by
        their expected time. A draw does not depend on past draws, so each of these is expected 1/p
        ticks from now."""
        self._read_mail(now)
        due, times = self._due.take(now)
        rows = np.unique(np.concatenate([*self._stale, due[self._at[due] == times]]))
        self._stale = []
        if not len(rows):
            return NOTHING
        rate = self._rate[rows]
        with np.errstate(divide="ignore"):
            wait = 1.0 / rate
        at = np.where(np.isinf(wait), np.nan, now + wait)
        self._at[rows] = at
        given = ~np.isnan(at)
        self._due.put(rows[given], at[given], now)
        return Estimates(self._roster.names(rows.tolist()), at, _on_time(rate, wait))


class Predrawn(DatedSource):
    """Agents whose activations are drawn ahead by the simulation's own generator: exact.

    ``draw(tick)`` returns the agents that act in ``tick``. It is called once per tick, in order
    from 0 on, ``horizon`` ticks ahead. The simulation takes its draws from ``active`` instead of
    drawing itself: the statistics are the same, and with one generator the draws are the same.
    Call both from the simulation's thread. ``confidence`` is the share of the predictions that come
    true. Raises ``ConfigError`` for wrong arguments.
    """

    def __init__(
        self,
        draw: Callable[[int], Sequence[AgentId]],
        *,
        horizon: int = 64,
        name: str = "predrawn",
        confidence: float = 1.0,
    ) -> None:
        super().__init__(name, confidence)
        function("draw", draw, "a tick's number", ConfigError)
        self._draw, self._horizon = draw, whole("horizon", horizon, 1, 10**6, ConfigError)
        self._drawn: dict[int, tuple[AgentId, ...]] = {}
        self._num_drawn = 0
        self._last: dict[AgentId, int] = {}  # by agent: the last tick for which it was drawn
        # by tick: the agents that act in it and again later, with the tick of the next activation
        self._after: dict[int, dict[AgentId, int]] = {}
        self._told = -1
        self._draw_until(self._horizon)

    def active(self, tick: int) -> tuple[AgentId, ...]:
        """The agents that act in ``tick``. Ask once for each tick, in order; each call draws ahead.
        Raises ``RequestError`` for a tick that is past, or was asked for before."""
        tick = whole("tick", tick, 0, self._num_drawn + 10**6)
        if tick not in self._drawn and tick < self._num_drawn:
            raise RequestError(f"active({tick}): ticks are asked for once each, in order")
        self._draw_until(tick + self._horizon + 1)
        for past in [drawn for drawn in self._drawn if drawn < tick]:
            del self._drawn[past]
        return self._drawn.pop(tick)

    def changes(self, now: float) -> Estimates:
        self._read_mail(now)
        for tick in [drawn for drawn in self._after if drawn < now]:
            for agent, again in self._after.pop(tick).items():
                self._changed[agent] = float(again)
        return super().changes(now)

    def called(self, agent: AgentId, now: float) -> None:
        again = self._after.get(math.floor(now), {}).pop(agent, None)
        if again is not None:
            self._changed[agent] = float(again)

    def forget(self, agents: Sequence[AgentId]) -> None:
        """Predict nothing more of ``agents``; ``active`` still returns the draws made before."""
        super().forget(agents)
        for agent in agents:
            self._last.pop(agent, None)
            for drawn in self._after.values():
                drawn.pop(agent, None)

    def _draw_until(self, end: int) -> None:
        for tick in range(self._num_drawn, end):
            agents = tuple(dict.fromkeys(agent_ids("what draw() gave", self._draw(tick))))
            self._drawn[tick] = agents
            self._tell(lambda now, tick=tick, agents=agents: self._take(tick, agents, now))  # type: ignore[misc]
        self._num_drawn = max(self._num_drawn, end)

    def _take(self, tick: int, agents: Sequence[AgentId], now: float) -> None:
        for agent in agents:
            before = self._last.get(agent)
            self._last[agent] = tick
            if before is None or before < now:
                self._changed[agent] = float(tick)
            else:
                self._after.setdefault(before, {})[agent] = tick


def _on_time(rate: Times, wait: Times) -> Times:
    """The probability that a geometrically distributed wait ends within the tolerance around its
    mean, ``[n]``."""
    slack = np.maximum(MIN_TOLERANCE_TICKS, TOLERANCE * wait)
    with np.errstate(invalid="ignore"):
        first = np.maximum(1.0, np.ceil(wait - slack))
        likely: Times = (1.0 - rate) ** (first - 1.0) - (1.0 - rate) ** np.floor(wait + slack)
    return np.nan_to_num(likely)


def _probabilities(values: npt.ArrayLike, count: int, error: Error) -> Times:
    return numbers("probability", values, count, 0.0, 1.0, error)
