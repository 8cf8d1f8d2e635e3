"""The learned source: predicts calls online, from the calls so far, without being told anything.

The predictions come from the pauses of agents of a kind, by a clock that runs slower while most
agents sleep, and from which agent tends to follow which. The source is silent until its
predictions miss less than LRU in shadow caches (``Trial``): at first, and wherever nothing can be
learned, the eviction order is that of LRU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from scalesim.checks import number, whole
from scalesim.core import AgentId, Int64s
from scalesim.distance.calendar import Calendar
from scalesim.distance.estimates import NOTHING, Estimates, Source, Times
from scalesim.distance.learned.day import Day, T
from scalesim.distance.learned.followers import Followers
from scalesim.distance.learned.gaps import NUM_KINDS, Gaps
from scalesim.distance.learned.survival import Survival, bin_of, bins_of
from scalesim.distance.learned.trial import ENOUGH, GAIN, Trial
from scalesim.distance.roster import Columns, Roster
from scalesim.distance.state import PlainState, put, taken
from scalesim.errors import ConfigError

_FOLLOWS = 0.5  # a less likely follower is not predicted
_LEAST_LIKELY = 0.1  # least confidence: an unlikely date still orders agents without other hints
_FIRST_FIT, _MIN_FIT, _FIT = 64, 512, 0.25  # pauses between two fits: at first; later; per agent
_MAX_WAITING = 1 << 16  # agents whose current pauses enter a fit


class Learned(Source):
    """A source that learns from the calls alone.

    ``day`` is the length of a day in ticks, if the simulation has day and night. ``seed`` chooses
    the sample of agents on which the source tests itself. Costs microseconds per call and some 180
    bytes per agent. Raises ``ConfigError`` for wrong arguments.

    Without an engine, call ``called(agent, now)`` at an agent's first call of a tick, and
    ``changes(now)`` for the new predictions.
    """

    judges_itself = True

    def __init__(self, *, day: float | None = None, name: str = "learned", seed: int = 0) -> None:
        super().__init__(name)
        if day is not None:
            day = number("day", day, 0.0, error=ConfigError, above=True)
        seed = whole("seed", seed, 0, error=ConfigError)
        self.trial = Trial(seed)
        self._day = None if day is None else Day(day)
        self._roster = Roster()
        self._gaps, self._followers = Gaps(), Followers()
        self._survival = Survival(NUM_KINDS)
        self._said = Columns(
            at=("f8", math.nan, ()),
            likely=("f4", 0.0, ()),
            last=("f8", math.nan, ()),  # time of the last call
            due=("f8", math.inf, ()),  # when the prediction is to be renewed
            kind=("u1", 0, ()),
            told=(np.bool_, False, ()),
        )
        self._calendar = Calendar()
        self._now = -math.inf  # when the source was last asked
        self._is_heard = False  # whether predictions may stand that were returned
        self._changed: dict[int, None] = {}

    def called(self, agent: AgentId, now: float) -> None:
        row = self._roster.row(agent)
        said = self._said
        if row >= said.num_rows or math.isnan(said.last[row]):
            said.grow(row + 1)
            self.trial.enter(row)
        self._try(row, now)
        gap = self._busy(now) - self._busy(float(said.last[row]))
        if gap == gap:
            self._survival.observe(int(said.kind[row]), gap)
        said.kind[row] = self._gaps.observe(row, gap)
        said.last[row] = now
        self._followers.observe(row, now)
        if self._day is not None:
            self._day.observe(now)
        self._say_usual(row, now)
        for other, delay, likely in self._followers.after(row, _FOLLOWS):
            if not said.at[other] > now or likely > said.likely[other]:
                self._say(other, now + delay, likely, now + delay, now)

    def changes(self, now: float) -> Estimates:
        self._read_mail(now)
        if self._day is not None:
            self._day.pass_to(now)
        survival = self._survival
        often = max(_MIN_FIT, _FIT * len(self._roster))
        if survival.num_new >= min(often, max(_FIRST_FIT, _FIT * survival.num_seen)):
            self._fit(now)
        if now > self._now:
            self._now = now
            self._revise(now)
            self._sweep(now)
        changed, self._changed = list(self._changed), {}
        said = self._said
        if not self.trial.is_won:
            return self._take_back()
        if not changed:
            return NOTHING
        self._is_heard = True
        said.told[changed] = True
        return Estimates(
            self._roster.names(changed), said.at[changed], said.likely[changed].astype(np.float64)
        )

    def forget(self, agents: Sequence[AgentId]) -> None:
        found = map(self._roster.remove, agents)
        rows = [row for row in found if row is not None]
        for row in rows:
            self._said.clear(row)
            self._changed.pop(row, None)
            self._gaps.forget(row)
            self.trial.forget(row)
        self._followers.forget(rows)

    def state(self) -> PlainState:
        """All that was learned."""
        return {
            "roster": self._roster.state(),
            "said": self._said.state(),
            "day": None if self._day is None else self._day.state(),
            "gaps": self._gaps.state(),
            "followers": self._followers.state(),
            "survival": self._survival.state(),
            "trial": self.trial.state(),
            "changed": list(self._changed),
            **taken(self, "_now", "_is_heard"),
        }

    def restore(self, state: PlainState, now: float) -> None:
        """Go on from what ``state`` gave, at ``now``. Raises ``ValueError`` for a state that was
        learned with other arguments."""
        if (self._day is None) != (state["day"] is None):
            raise ValueError("day= is given once, and once not")
        if self._day is not None:
            self._day.restore(state["day"])
        self._roster.restore(state["roster"])
        self._said.restore(state["said"])
        self._gaps.restore(state["gaps"])
        self._followers.restore(state["followers"])
        self._survival.restore(state["survival"])
        self.trial.restore(state["trial"])
        put(self, state, "_now", "_is_heard")
        self._changed = dict.fromkeys(state["changed"])
        self._date_all(now)

    def why_silent(self) -> str:
        if self.trial.is_won:
            return ""
        survival, tried = self._survival, float(self.trial.misses[0].sum())
        if not survival.num_fits:
            return (
                f"it has seen {survival.num_seen} pauses between calls of one agent and needs "
                f"{min(_MIN_FIT, _FIRST_FIT)} before it predicts anything"
            )
        if tried < ENOUGH:
            return (
                f"it tries its predictions out: last use missed {tried:.0f} times so far in its "
                f"small caches, and it judges from {ENOUGH:.0f} on"
            )
        return (
            f"its order would miss {self.trial.kept:.2f} of what last use misses, and it is worth "
            f"hearing from {GAIN} down; so the order is last use's"
        )

    def _take_back(self) -> Estimates:
        """Take all predictions back after a lost trial: else an agent that called before its
        predicted time would still be expected at it."""
        if not self._is_heard:
            return NOTHING
        self._is_heard = False
        rows = np.flatnonzero(self._said.told)
        self._said.told[rows] = False
        return Estimates(self._roster.names(rows.tolist()), np.full(len(rows), math.nan))

    # -- predictions --------------------------------------------------------------------------

    def _say_usual(self, row: int, now: float) -> None:
        """Predict the next call of ``row``, which has just called."""
        survival = self._survival
        if not survival.num_fits:
            return
        place = self._said.kind[row], bin_of(0.0)
        busy = self._busy(now)
        time = self._clock(busy + float(survival.distance[place]))
        due = min(time, self._clock(busy + float(survival.until[place]) - 0.5))
        self._say(row, time, float(survival.likely[place]), due, now)

    def _say(self, row: int, time: float, likely: float, due: float, now: float) -> None:
        said = self._said
        said.at[row], said.likely[row], said.due[row] = time, max(likely, _LEAST_LIKELY), due
        self._changed[row] = None
        if self.trial.is_won or self.trial.samples(row):
            self._calendar.put_one(row, due, now)

    def _revise(self, now: float) -> None:
        """Renew the predictions that are due: the agent has not called by the predicted time, or by
        the age from which on the prediction differs."""
        rows, times = self._calendar.take(now)
        if not len(rows):
            return
        said, survival = self._said, self._survival
        rows = np.unique(rows[said.due[rows] == times])
        if not self.trial.is_won:
            rows = np.intersect1d(rows, self.trial.sampled())
        if not len(rows) or not survival.num_fits:
            return
        busy = self._busy(now)
        begun = self._busy(said.last[rows])
        place = said.kind[rows], bins_of(busy - begun)
        said.at[rows] = self._clock(busy + survival.distance[place])
        said.likely[rows] = np.maximum(survival.likely[place], _LEAST_LIKELY)
        until = self._clock(begun + survival.until[place] - 0.5)
        said.due[rows] = np.maximum(np.minimum(said.at[rows], until), now)
        self._calendar.put(rows, said.due[rows], now)
        self._changed.update(dict.fromkeys(rows.tolist()))

    def _sweep(self, now: float) -> None:
        """Drop outdated entries, of agents that called before they were due, once there are many
        per agent."""
        num_rows = len(self._roster)
        if self._calendar.num_entries > 4 * num_rows + 1024:
            self._date_all(now)

    def _date_all(self, now: float) -> None:
        self._calendar = Calendar()
        rows = np.flatnonzero(np.isfinite(self._said.due[: len(self._roster)]))
        self._calendar.put(rows, self._said.due[rows], now)

    # -- learning -----------------------------------------------------------------------------

    def _try(self, row: int, now: float) -> None:
        if self._survival.num_fits and self.trial.samples(row):
            sampled = self.trial.sampled()
            self.trial.called(row, self._said.at[sampled], self._said.last[sampled], now)

    def _fit(self, now: float) -> None:
        """Estimate the curves anew. ``changes`` spaces the fits so that their cost per call stays
        bounded."""
        num_rows = len(self._roster)
        rows: Int64s = np.arange(0, num_rows, -(-num_rows // _MAX_WAITING))
        rows = rows[~np.isnan(self._said.last[rows])]  # without free rows
        ages: Times = self._busy(now) - self._busy(self._said.last[rows])
        self._survival.fit(self._said.kind[rows].astype(np.int64), ages)

    def _busy(self, time: T) -> T:
        return time if self._day is None else self._day.busy(time)

    def _clock(self, busy: T) -> T:
        return busy if self._day is None else self._day.clock(busy)
