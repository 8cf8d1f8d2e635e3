"""Invocation distance: who is needed when. Predictions, open calls and bursts become one next use.

An agent is needed *now* while it calls, and while its burst of calls may go on; else when its
sources say, as combined; else nobody knows. Every estimate is advice: it moves state earlier or
later and never changes a result. Knows nothing of memory: changes are returned, for the engine to
pass on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np

from scalesim.core import AgentId, Int64s
from scalesim.distance.clock import Clock
from scalesim.distance.combine import LEAST, Combine, earliest_credible
from scalesim.distance.estimates import Estimates, Source, Times
from scalesim.distance.ledger import Ledger
from scalesim.distance.roster import Columns, Roster
from scalesim.distance.scores import Score
from scalesim.errors import ConfigError
from scalesim.foreign import Foreign, report

Change = tuple[AgentId, float | None]
"""An agent and its new next use, in steps of the clock; ``None`` = unknown."""

_FEW = 8  # estimates that are cheaper one by one than as arrays
_NOT_TOLD = -math.inf
_LEAD_WEIGHT = 0.05
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Voice:
    """A source and what it says. ``source`` is ``None`` for what users declare."""

    name: str
    ledger: Ledger
    source: Source | None = None


class Distances:
    """The next use of every agent that was ever heard of.

    ``early_steps`` is how many steps before their time those calls come that count as on time: the
    mean, learned; the start window allows for it.
    """

    def __init__(self, clock: Clock, combine: Combine = earliest_credible) -> None:
        self.clock = clock
        self.roster = Roster()
        self.num_expired = 0
        self.early_steps = 0.0
        self._combine = combine
        self._declared, self._woken = Ledger(), Ledger()
        self._voices = [_Voice("declared", self._declared), _Voice("wake", self._woken)]
        self._rows = Columns(
            open_calls=(np.int32, 0, ()),
            calls=(np.int32, 0, ()),  # in this step
            usual_calls=(np.int32, 0, ()),  # in the last step in which it called
            combined=(np.float64, np.nan, ()),
            told=(np.float64, _NOT_TOLD, ()),  # the next use that was last returned
        )
        self._called: dict[int, None] = {}  # rows, in this step, in order

    @property
    def num_ignored(self) -> int:
        """Hints and estimates that were not a time."""
        return sum(voice.ledger.num_ignored for voice in self._voices)

    def scores(self) -> dict[str, Score]:
        """By source, how its predictions came out."""
        return {voice.name: voice.ledger.score for voice in self._voices}

    def add(self, source: Source) -> list[Change]:
        """Listen to ``source`` from now on. Raises ``ConfigError`` where the name is taken."""
        if any(voice.name == source.name for voice in self._voices):
            raise ConfigError(
                f"a source named {source.name!r} is there already; give this one another name="
            )
        ledger = Ledger(judges_itself=source.judges_itself)
        self._voices.append(_Voice(source.name, ledger, source))
        return self.poll()

    def next_use(self, agent: AgentId) -> float | None:
        row = self.roster.get(agent)
        if row is None or math.isnan(at := self._effective(row)):
            return None
        return at

    # -- what users say -----------------------------------------------------------------------

    def expect(self, agent: AgentId, at: float, confidence: float = 1.0) -> list[Change]:
        """``agent`` will call at time ``at`` (steps). A time in the past means now. What is no
        number, or not finite, is ignored and counted: ``inf`` and NaN say nothing about a time."""
        return self.expect_all({agent: at}, confidence)

    def expect_all(
        self, times: Mapping[AgentId, float], confidence: float = 1.0, *, offset: float = 0.0
    ) -> list[Change]:
        """``expect`` for many agents; the changes in their order. ``offset`` is added to each."""
        at = _numbers(times.values()) + offset
        if len(times) > _FEW:
            agents = tuple(times)
            rows = self._rows_of(agents)
            self._end_bursts(rows, at)
            sure = np.broadcast_to(confidence, at.shape)
            return self._post_rows(self._declared, agents, rows, at, sure)
        for agent, time in zip(times, at.tolist(), strict=True):
            self._end_burst(agent, time)
        return self._post(self._declared, Estimates(tuple(times), at.tolist(), confidence))

    def wake(self, agent: AgentId) -> list[Change]:
        """``agent`` will call at once, whatever was said before."""
        return self._post(self._woken, Estimates((agent,), (self.clock.now,)))

    def _end_burst(self, agent: AgentId, at: float) -> None:
        """Who says that it calls later says that its burst of calls is over."""
        row = self.roster.get(agent)
        if row in self._called and self.clock.now < at < math.inf:
            rows = self._rows
            if not rows.open_calls[row]:
                rows.usual_calls[row] = rows.calls[row]

    def _end_bursts(self, rows: Int64s, at: Times) -> None:
        """``_end_burst`` for ``[n]`` agents."""
        if self._called:
            columns = self._rows
            calls = columns.calls[rows]
            over = (calls > 0) & (columns.open_calls[rows] == 0)
            over &= (self.clock.now < at) & (at < math.inf)
            columns.usual_calls[rows[over]] = calls[over]

    # -- what happens -------------------------------------------------------------------------

    def called(self, agent: AgentId) -> list[Change]:
        """A request of ``agent`` arrived. A hint for this step or before has come true."""
        row = self._row(agent)
        rows, now = self._rows, self.clock.now
        first = row not in self._called
        rows.open_calls[row] += 1
        rows.calls[row] += 1
        self._called[row] = None
        leads = [voice.ledger.called(row, now, first=first) for voice in self._voices]
        if first and any(lead is not None for lead in leads):
            lead = max(lead for lead in leads if lead is not None)
            self.early_steps += _LEAD_WEIGHT * (lead - self.early_steps)
        self._combine_one(row)
        rows.told[row] = _NOT_TOLD  # each call is news: the newest is served last
        changes = self._changes([row])
        if first and len(self._voices) > 2:
            changes += self._ask(lambda source: source.called(agent, now))
        return changes

    def ended(self, agent: AgentId) -> list[Change]:
        """A request of ``agent`` ended, however it did."""
        row = self._row(agent)
        self._rows.open_calls[row] -= 1
        return self._changes([row])

    def advance(self, wall_s: float, *, to: float | None = None) -> list[Change]:
        """Move the clock. Costs what spoke in the step, what expired and what sources say anew, not
        what exists."""
        self.clock.advance(wall_s, to=to)
        spoke = np.fromiter(self._called, np.int64, len(self._called))
        self._called = {}
        rows = self._rows
        rows.usual_calls[spoke], rows.calls[spoke] = rows.calls[spoke], 0
        expired = [voice.ledger.expire(self.clock.now) for voice in self._voices]
        over = np.concatenate(expired)
        self.num_expired += len(over)
        self._combine_many(over)
        changes = self._all_changes(np.concatenate([spoke, over]))
        return changes + self.poll()

    def poll(self) -> list[Change]:
        """Ask every source what is new."""
        return self._ask(lambda source: None)

    def _ask(self, note: Callable[[Source], None]) -> list[Change]:
        """Tell every source ``note``, and take in what it says then. One that fails is not asked
        again: it is advice, and must not end a simulation."""
        changes: list[Change] = []
        for voice in self._voices[2:]:
            if voice.source is None:
                continue
            with Foreign() as raised:
                note(voice.source)
                estimates = voice.source.changes(self.clock.now)
                changes += self._post(voice.ledger, estimates)
            if raised.error is not None:
                voice.source = None
                message = "source %r failed and is not asked again"
                report(_log, message, voice.name, error=raised.error)
        return changes

    # -- from estimates to changes ------------------------------------------------------------

    def _post(self, ledger: Ledger, estimates: Estimates) -> list[Change]:
        agents, at, confidence = estimates
        if len(at) != len(agents):
            raise ValueError(f"{len(at)} times for {len(agents)} agents; give one for each")
        if not len(agents):
            return []
        if len(agents) > _FEW:
            times = np.asarray(at, np.float64)
            sure = np.broadcast_to(np.asarray(confidence, np.float64), times.shape)
            return self._post_rows(ledger, agents, self._rows_of(agents), times, sure)
        now, touched = self.clock.now, []
        each = [confidence] * len(agents) if isinstance(confidence, (int, float)) else confidence
        for agent, time, sure_of_it in zip(agents, at, each, strict=True):
            row = self._row(agent)
            if ledger.post_one(row, float(time), float(sure_of_it), now):
                self._combine_one(row)
                touched.append(row)
        return self._changes(touched)

    def _post_rows(
        self, ledger: Ledger, agents: Sequence[AgentId], rows: Int64s, at: Times, confidence: Times
    ) -> list[Change]:
        """``_post`` for ``[n]`` agents at once."""
        changed = ledger.post(rows, at, confidence, self.clock.now)
        self._combine_many(changed)
        return self._all_changes(changed, agents if len(changed) == len(rows) else None)

    def _combine_one(self, row: int) -> None:
        at, confidence = [], []
        for voice in self._voices:
            time = voice.ledger.says(row)
            if time == time and (heard := voice.ledger.heard(row)) >= LEAST:
                at.append(time)
                confidence.append(heard)
        if len(at) > 1:
            said = self._combined(np.array(at)[:, None], np.array(confidence)[:, None])
            self._rows.combined[row] = said[0]
        else:
            self._rows.combined[row] = at[0] if at else math.nan

    def _combine_many(self, rows: Int64s) -> None:
        if not len(rows):
            return
        heard = [self._heard(voice.ledger, rows) for voice in self._voices if voice.ledger.is_heard]
        if len(heard) == 1:
            self._rows.combined[rows] = heard[0][0]
            return
        at = np.array([times for times, _ in heard]).reshape(-1, len(rows))
        confidence = np.array([sure for _, sure in heard]).reshape(at.shape)
        silent = np.isnan(at)
        speaking = len(heard) - silent.sum(axis=0)
        combined = np.where(speaking == 1, np.where(silent, 0.0, at).sum(axis=0), np.nan)
        several = speaking > 1
        if several.any():
            combined[several] = self._combined(at[:, several], confidence[:, several])
        self._rows.combined[rows] = combined

    def _heard(self, ledger: Ledger, rows: Int64s) -> tuple[Times, Times]:
        """What it says of ``rows`` and how sure it may be, both ``[n]``; NaN and 0 where that is
        nothing."""
        ledger.columns.grow(len(self.roster))
        confidence = ledger.columns.confidence[rows] * ledger.score.trust
        at = np.where(confidence >= LEAST, ledger.columns.at[rows], np.nan)
        return at, np.where(np.isnan(at), 0.0, confidence)

    def _combined(self, at: Times, confidence: Times) -> Times:
        """What the function says, or the default's if it fails: it is advice as well."""
        said = np.zeros(0)
        with Foreign() as raised:
            said = np.asarray(self._combine(at, confidence), np.float64).reshape(at.shape[1])
        if raised.error is not None:
            message = "the function that combines sources failed; the default takes over"
            report(_log, message, error=raised.error)
            self._combine = earliest_credible
            said = earliest_credible(at, confidence)
        return np.where(np.isfinite(said), said, np.nan)

    def _effective(self, row: int) -> float:
        rows = self._rows
        if rows.open_calls[row] or 0 < rows.calls[row] < rows.usual_calls[row]:
            return self.clock.now
        return float(rows.combined[row])

    def _changes(self, touched: Sequence[int]) -> list[Change]:
        changes: list[Change] = []
        told = self._rows.told
        for row in touched:
            at, last = self._effective(row), float(told[row])
            if at != last and not (at != at and last != last):
                told[row] = at
                changes.append((self.roster.ids[row], None if math.isnan(at) else at))
        return changes

    def _all_changes(
        self, touched: Int64s, agents: Sequence[AgentId] | None = None
    ) -> list[Change]:
        """``_changes`` as arrays. ``agents`` are those of ``touched``, where somebody knows them:
        that spares looking them up."""
        if len(touched) <= _FEW:
            return self._changes(list(dict.fromkeys(touched.tolist())))
        rows = self._rows
        _, first = np.unique(touched, return_index=True)
        if len(first) < len(touched):
            touched, agents = touched[np.sort(first)], None  # in their order, each once
        calls = rows.calls[touched]
        busy = (rows.open_calls[touched] > 0) | ((calls > 0) & (calls < rows.usual_calls[touched]))
        at: Times = np.where(busy, self.clock.now, rows.combined[touched])
        told = rows.told[touched]
        news = (at != told) & ~(np.isnan(at) & np.isnan(told))
        rows.told[touched] = at
        times: list[Any] = at[news].tolist()
        if agents is None:
            names = self.roster.names(touched[news].tolist())
        else:
            names = list(compress(agents, news.tolist()))
        if not np.isnan(at).any():
            return list(zip(names, times, strict=True))
        return [(name, None if at != at else at) for name, at in zip(names, times, strict=True)]

    def _rows_of(self, agents: Sequence[AgentId]) -> Int64s:
        rows = self.roster.rows(agents)
        self._rows.grow(len(self.roster))
        return rows

    def _row(self, agent: AgentId) -> int:
        row = self.roster.row(agent)
        if row >= self._rows.num_rows:
            self._rows.grow(row + 1)
        return row


def _numbers(values: Collection[float]) -> Times:
    """``[n]``; what is no number is infinite: it takes nothing back, and is ignored."""
    try:
        numbers = np.fromiter(values, np.float64, len(values))
    except (TypeError, ValueError, OverflowError):
        numbers = np.array([_number(value) for value in values])
    numbers[np.isnan(numbers)] = np.inf
    return numbers


def _number(value: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.inf
