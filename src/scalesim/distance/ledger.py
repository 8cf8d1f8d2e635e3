"""The current predictions of one source, a row per agent, until they come true or expire.

A prediction expires when it is overdue by more than its own distance, and by at least two ticks.
Predicting *now* again and again does not renew a prediction, so that false alarms are scored.
"""

from __future__ import annotations

import math

import numpy as np

from scalesim.core import Int64s
from scalesim.distance.calendar import Calendar
from scalesim.distance.estimates import Times
from scalesim.distance.hints import FEW
from scalesim.distance.roster import Columns
from scalesim.distance.scores import Score
from scalesim.distance.state import PlainState

MIN_PATIENCE_TICKS = 2.0
LATEST = 2.0**52  # ticks; later predictions are clipped to this


class Ledger:
    """Predictions of one source, with the source's score.

    ``columns.at[row]`` is the predicted time in ticks, NaN where there is no prediction. A
    prediction stays until the agent calls, it expires, or the source takes it back.
    """

    def __init__(self, *, judges_itself: bool = False) -> None:
        self.score = Score(judges_itself=judges_itself)
        self.columns = Columns(
            at=(np.float64, np.nan, ()),
            made=(np.float64, 0.0, ()),
            confidence=(np.float32, 0.0, ()),
        )
        self._deadlines = Calendar(self._stands)

    def says(self, row: int) -> float:
        """The row's predicted time in ticks; NaN if there is no prediction."""
        columns = self.columns
        return float(columns.at.item(row)) if row < columns.num_rows else math.nan

    @property
    def is_heard(self) -> bool:
        """Whether there was any prediction, and the source is not muted."""
        return bool(self.columns.num_rows) and not self.score.muted

    def heard(self, row: int) -> float:
        """The confidence of the row's prediction, discounted by the source's trust."""
        trust = 0.0 if self.score.muted else self.score.trust
        return float(self.columns.confidence.item(row)) * trust

    def post_one(self, row: int, time: float, confidence: float, now: float) -> bool:
        """Take in a prediction made at ``now`` (NaN takes the last back). Returns whether it
        changes anything. ``time`` is in ticks; it is clipped to ``now`` … ``LATEST``, and
        ``confidence`` to 0 … 1."""
        columns = self.columns
        columns.grow(row + 1)
        old = columns.at.item(row)
        if math.isnan(time):
            columns.at[row] = math.nan
            return not math.isnan(old)
        time = min(max(time, now), LATEST)
        if time == now and old <= now:
            return False
        columns.at[row], columns.made[row] = time, now
        columns.confidence[row] = min(max(confidence, 0.0), 1.0)
        self._deadlines.put_one(row, time + max(MIN_PATIENCE_TICKS, time - now), now)
        self._sweep(now)
        return True

    def post(self, rows: Int64s, at: Times, confidence: Times, now: float) -> Int64s:
        """``post_one`` for ``[n]`` distinct rows at once. Returns the rows that changed."""
        self.columns.grow(int(rows.max(initial=-1)) + 1)
        columns = self.columns
        at = np.clip(at, now, LATEST)  # NaN stays
        old = columns.at[rows]
        news = ~((at == now) & (old <= now)) & ~(np.isnan(at) & np.isnan(old))
        rows, at, confidence = rows[news], at[news], confidence[news]
        given = ~np.isnan(at)
        columns.at[rows] = at
        columns.made[rows[given]] = now
        columns.confidence[rows[given]] = np.clip(confidence[given], 0.0, 1.0)
        rows_given, at = rows[given], at[given]
        self._deadlines.put(rows_given, at + np.maximum(MIN_PATIENCE_TICKS, at - now), now)
        self._sweep(now)
        return rows

    def state(self) -> PlainState:
        """The predictions and the score."""
        return {"columns": self.columns.state(), "score": self.score.state()}

    def restore(self, state: PlainState, now: float) -> None:
        """Have the predictions and the score that ``state`` gave, at ``now``."""
        self.columns.restore(state["columns"])
        self.score.restore(state["score"])
        self._date_all(now)

    def forget(self, row: int) -> None:
        """Clear ``row``, whose agent is gone: another agent may get the row."""
        self.columns.clear(row)

    def called(self, row: int, now: float, *, first: bool) -> None:
        """Note that the row's agent called: score the prediction if this is the agent's ``first``
        call of the tick. A prediction for this tick or before has come true and is forgotten; a
        later one stays.
        """
        at = self.says(row)
        if math.isnan(at):
            return
        columns = self.columns
        if first:
            self.score.called(columns.made.item(row), at, now, columns.confidence.item(row))
        if at < math.floor(now) + 1.0:
            columns.at[row] = math.nan

    def expire(self, now: float) -> list[int]:
        """Forget the predictions that have expired, and score them. Returns their rows."""
        rows, deadlines = self._deadlines.take(now)
        if not len(rows):
            return []
        if len(rows) <= FEW and not any(map(self._stands, rows.tolist(), deadlines.tolist())):
            return []  # what came true is not taken out of the calendar
        columns = self.columns
        rows = rows[self._deadline(rows) == deadlines]  # not renewed since
        if len(rows):
            rows = np.unique(rows)
            self.score.expired(len(rows), float(columns.confidence[rows].mean()))
            columns.at[rows] = np.nan
        found: list[int] = rows.tolist()
        return found

    def _stands(self, row: int, deadline: float) -> bool:
        """Whether the row's prediction has this deadline: it was not renewed, and did not come
        true. In plain numbers."""
        at, made = float(self.columns.at.item(row)), float(self.columns.made.item(row))
        return at + max(MIN_PATIENCE_TICKS, at - made) == deadline

    def _deadline(self, rows: Int64s) -> Times:
        at, made = self.columns.at[rows], self.columns.made[rows]
        deadline: Times = at + np.maximum(MIN_PATIENCE_TICKS, at - made)
        return deadline

    def _sweep(self, now: float) -> None:
        """Drop outdated deadlines, of renewed predictions, once there are many per agent."""
        if self._deadlines.num_entries > 4 * self.columns.num_rows + 1024:
            self._date_all(now)

    def _date_all(self, now: float) -> None:
        self._deadlines = Calendar(self._stands)
        rows = np.flatnonzero(~np.isnan(self.columns.at))
        self._deadlines.put(rows, self._deadline(rows), now)
