"""A source that needs to be told nothing: it predicts calls from the calls so far, online.

Each agent's usual pause, by a clock that runs slower while everybody sleeps, and who tends to
follow whom. Says nothing until its predictions have put agents into a better order than their last
use does (``Duels``): at first, and wherever nothing can be learned, the order is that of LRU.
"""

from __future__ import annotations

import math
import random

from scalesim.core import AgentId
from scalesim.distance.day import Day
from scalesim.distance.duels import Duels
from scalesim.distance.estimates import NOTHING, Estimates, Source
from scalesim.distance.followers import Followers
from scalesim.distance.gaps import Gaps
from scalesim.distance.roster import Columns, Roster
from scalesim.errors import ConfigError

_FOLLOWS = 0.5  # a follower less likely than this is not spoken of


class Learned(Source):
    """``day``: steps of a day, where the simulation has day and night. ``seed``: of the sample of
    agents on which it tests itself. Costs microseconds a call and some 150 bytes an agent.

    Alone, without an engine: ``called(agent, now)`` at an agent's first call of a step,
    ``changes(now)`` for what is new. Raises ``ConfigError``.
    """

    def __init__(self, *, day: float | None = None, name: str = "learned", seed: int = 0) -> None:
        super().__init__()
        if day is not None and not 0.0 < day < math.inf:
            raise ConfigError(f"day={day}; a day must last above 0 steps, and end")
        self.name = name
        self.duels = Duels()
        self._day = None if day is None else Day(day)
        self._roster = Roster()
        self._gaps, self._followers = Gaps(), Followers()
        self._said = Columns(at=("f8", math.nan, ()), likely=("f4", 0.0, ()))
        self._random = random.Random(seed)
        self._changed: dict[int, None] = {}

    def called(self, agent: AgentId, now: float) -> None:
        row = self._roster.row(agent)
        self._said.grow(row + 1)
        self.duels.called(row)
        self._gaps.observe(row, now, self._busy(now) - self._busy(self._gaps.last(row)))
        self._followers.observe(row, now)
        if self._day is not None:
            self._day.observe(now)
        self._said.at[row] = math.nan
        usual = self._gaps.usual(row)
        if usual is not None:
            self._say(row, self._clock(self._busy(now) + usual[0]), usual[1])
        for other, delay, likely in self._followers.after(row, _FOLLOWS):
            if not self._said.at[other] > now or likely > self._said.likely[other]:
                self._say(other, now + delay, likely)
        self._test(row, now)

    def changes(self, now: float) -> Estimates:
        self._read_mail(now)
        if self._day is not None:
            self._day.pass_to(now)
        changed, self._changed = list(self._changed), {}
        if not changed or not self.duels.is_better:
            return NOTHING
        said = self._said
        return Estimates(
            self._roster.names(changed), said.at[changed].tolist(), said.likely[changed].tolist()
        )

    def _say(self, row: int, at: float, likely: float) -> None:
        self._said.at[row], self._said.likely[row] = at, likely
        self._changed[row] = None

    def _test(self, row: int, now: float) -> None:
        """Last use says that ``row``, which just called, is the first to call again."""
        other = self._random.randrange(len(self._roster))
        at = float(self._said.at[other])
        if other != row and now <= at < self._said.at[row]:
            self.duels.open(row, other)

    def _busy(self, time: float) -> float:
        return time if self._day is None or time != time else self._day.busy(time)

    def _clock(self, busy: float) -> float:
        return busy if self._day is None else self._day.clock(busy)
