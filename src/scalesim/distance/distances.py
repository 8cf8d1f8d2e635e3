"""Invocation distance: the next use of each agent, from predictions, open calls and bursts.

The next use is *now* while an agent has an open call, while its burst of calls is likely to go on,
and while the agent is pinned; *last of all* from when its user puts it off until it calls or is
spoken of again; otherwise the combined prediction of its sources; otherwise unknown. A next use is
advice: it decides when state moves, and never changes a result. This module imports nothing of
memory: methods return the changes, and the engine passes them on.

Up to ``FEW`` agents are handled as plain numbers, more as arrays: arrays of one entry would add
0.15 ms to a call, and a thousand agents one by one take eight times as long as in arrays.
"""

from __future__ import annotations

import logging
import math
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np

from scalesim.checks import shown
from scalesim.core import AgentId, Int64s
from scalesim.distance.clock import Clock
from scalesim.distance.combine import LEAST, Combine, earliest_credible
from scalesim.distance.estimates import Source, Times
from scalesim.distance.hints import FEW, Hints, Ignored, nearest, read
from scalesim.distance.ledger import LATEST, Ledger
from scalesim.distance.roster import Columns, Roster
from scalesim.distance.scores import Score
from scalesim.distance.state import PlainState
from scalesim.distance.voice import Voice, silence_of, voice_of
from scalesim.errors import ConfigError, HintWarning
from scalesim.foreign import Foreign, report

Change = tuple[AgentId, float | None]
"""An agent and its new next use, in ticks of the clock; ``None`` = unknown."""

_MAX_KEPT = 1024  # agents whose last ignored hint is kept
_MAX_NAMES = 8  # unknown names that a score shows
_NOT_TOLD = -math.inf
_PINNED, _PUT_OFF = 1, -1
_log = logging.getLogger(__name__)


class Distances:
    """The next use of every agent that a call or a hint has named.

    ``is_known`` tells whether an agent exists: changes name only agents that exist, and a hint
    about a nonexistent agent is dropped when its time has passed.
    """

    def __init__(
        self,
        clock: Clock,
        combine: Combine = earliest_credible,
        is_known: Callable[[AgentId], bool] = lambda agent: True,
    ) -> None:
        self.clock, self.is_known = clock, is_known
        self.roster = Roster()
        self._combine = combine
        self._declared, self._woken = Ledger(), Ledger()
        self._voices = [Voice("declared", self._declared), Voice("wake", self._woken)]
        # by agent: its last ignored hint, and the source of that hint
        self._ignored: OrderedDict[AgentId, tuple[str, Ignored]] = OrderedDict()
        self._counting = threading.Lock()  # users' ignored hints are counted on the users' threads
        self._rows = Columns(
            known=(np.bool_, False, ()),
            open_calls=(np.int32, 0, ()),
            calls=(np.int32, 0, ()),  # in this tick
            usual_calls=(np.int32, 0, ()),  # in the agent's last tick with a call
            combined=(np.float64, np.nan, ()),
            standing=(np.int8, 0, ()),  # pinned, put off, or neither
            told=(np.float64, _NOT_TOLD, ()),  # the next use that was returned last
        )
        self._has_put_off = False  # ever
        # after a restore: what was kept of sources that are not heard yet, and who lost it
        self._kept: dict[str, PlainState] = {}
        self._lost: list[str] = []
        self._called: dict[int, None] = {}  # rows with a call in this tick, in order
        self._met: list[int] = []  # rows of agents made in this tick, with predictions from before

    @property
    def names(self) -> list[str]:
        """Names of all sources, with ``declared`` and ``wake`` for the users' own hints first."""
        return [voice.name for voice in self._voices]

    @property
    def has_sources(self) -> bool:
        """Whether there is a source besides the users' own hints. From any thread."""
        return len(self._voices) > 2

    def scores(self) -> dict[str, Score]:
        """The score of each source's predictions, by the source's name. From any thread."""
        for voice in self._voices:
            score = voice.ledger.score
            strangers = [
                stranger for stranger in list(voice.strangers) if not self.is_known(stranger)
            ]
            score.unknown = tuple([*strangers, *list(voice.misnamed)][:_MAX_NAMES])
            score.silent = silence_of(voice)
        return {voice.name: voice.ledger.score for voice in self._voices}

    def add(self, source: Source) -> list[Change]:
        """Listen to ``source`` from now on. Raises ``ConfigError`` if ``source`` is no ``Source``,
        or if its name is taken."""
        voice = voice_of(source)
        if voice.name in self.names:
            raise ConfigError(
                f"a source named {voice.name!r} is there already; give this another name="
            )
        return self.listen(voice)

    def listen(self, voice: Voice) -> list[Change]:
        """``add`` for a source that was checked before and whose name is free. After a ``restore``
        it goes on from what the source of this name had said and learned."""
        said = self._kept.pop(voice.name, None)
        if said is not None and not voice.restore(said, self.clock.now, self.roster):
            self._lost.append(voice.name)
        self._voices.append(voice)
        return self.poll()

    def state(self) -> PlainState:
        """All that was said and learned, without the open calls: for ``restore``."""
        rows = self._rows.state()
        rows["open_calls"][:] = 0
        return {
            "roster": self.roster.state(),
            "rows": rows,
            "called": list(self._called),
            "met": list(self._met),
            "has_put_off": self._has_put_off,
            "voices": [voice.state() for voice in self._voices],
        }

    def restore(self, state: PlainState) -> list[Change]:
        """Go on from what ``state`` gave. No source has been heard so far; the sources to come are
        listened to afterwards, and then ``give_up_kept`` is called. Returns the next uses of all
        agents."""
        assert len(self._voices) == 2, self.names
        self.roster.restore(state["roster"])
        self._rows.restore(state["rows"])
        self._called = dict.fromkeys(state["called"])
        self._met, self._has_put_off = list(state["met"]), bool(state["has_put_off"])
        self._kept = {said["name"]: said for said in state["voices"]}
        for voice in self._voices:
            voice.restore(self._kept.pop(voice.name), self.clock.now, self.roster)
        return self._changes_of_all()

    def give_up_kept(self) -> tuple[list[Change], list[str]]:
        """Forget what was restored of sources that are not listened to by now. Returns what changes
        by that, and the names of the sources whose knowledge is lost: theirs, and of those that
        could not go on from it."""
        lost = [*self._lost, *self._kept]
        self._kept, self._lost = {}, []
        if not lost:
            return [], []
        self._combine_many(np.arange(len(self.roster)))
        return self._changes_of_all(), lost

    def _changes_of_all(self) -> list[Change]:
        self._rows.grow(len(self.roster))
        self._rows.told[:] = _NOT_TOLD
        return self._all_changes(np.arange(len(self.roster)))

    def forget(self, agents: Sequence[AgentId]) -> list[Change]:
        """Forget ``agents``, which have no open call and no longer exist, and tell the sources.
        Returns what the sources then say of other agents."""
        changes = self._ask(lambda source: source.forget(agents))
        for agent in agents:
            self._remove(agent)
        gone = set(agents)
        return [change for change in changes if change[0] not in gone]

    def _remove(self, agent: AgentId) -> None:
        self._ignored.pop(agent, None)
        row = self.roster.remove(agent)
        if row is None:
            return
        self._called.pop(row, None)
        self._rows.clear(row)
        for voice in self._voices:
            voice.ledger.forget(row)
            voice.strangers.pop(agent, None)
            voice.misnamed.pop(agent, None)

    def next_use(self, agent: AgentId) -> float | None:
        """The agent's next use, in ticks of the clock; ``None`` if unknown."""
        row = self.roster.get(agent)
        if row is None or math.isnan(time := self._effective(row)):
            return None
        return time

    def behind_calls(self, agent: AgentId) -> float | None:
        """When the agent calls next after its open calls and its burst, in ticks of the clock;
        ``None`` if unknown."""
        row = self.roster.get(agent)
        if row is None or math.isnan(time := float(self._rows.combined[row])):
            return None
        return time

    # -- what users say -----------------------------------------------------------------------

    def expect(self, agent: AgentId, time: float, confidence: float = 1.0) -> list[Change]:
        """Declare that ``agent`` will call at ``time``, in ticks. A time in the past means now. A
        value that is no finite number is ignored and counted."""
        return self.expect_all({agent: time}, confidence)

    def expect_all(
        self,
        times: Mapping[AgentId, float],
        confidence: float | Mapping[AgentId, float] = 1.0,
        *,
        offset: float = 0.0,
    ) -> list[Change]:
        """``expect`` for many agents; returns the changes in their order. ``offset``, in ticks, is
        added to each time. ``confidence`` is one for all, or one for each."""
        declared = self._voices[0]
        sure: Any = confidence
        if for_each := isinstance(confidence, Mapping):
            sure = [confidence[agent] for agent in times]
        hints, ignored = read(
            tuple(times), list(times.values()), sure, of_users=True, for_each=for_each
        )
        self._ignore(declared, ignored)
        agents, at, sure = hints
        if isinstance(at, list):
            at = [time + offset for time in at]
            for agent, time in zip(agents, at, strict=True):
                self._end_burst(agent, time)
        else:
            at = at + offset
            self._end_bursts(self._rows_of(agents), at)
        back = self._call_back(agents)
        changes = self._say(declared, Hints(agents, at, sure))
        return changes + self._changes(back)  # also where the hint says what was said before

    def wake(self, agent: AgentId) -> list[Change]:
        """Declare that ``agent`` will call at once, whatever was declared before."""
        self._call_back([agent])
        self._rows.told[self._rows_of([agent])] = _NOT_TOLD
        return self._say(self._voices[1], Hints((agent,), [self.clock.now], [1.0]))

    def pin(self, agents: Sequence[AgentId]) -> list[Change]:
        """From now on the next use of ``agents`` is now, until they are let go. Told even where it
        was now before: a pin is no guess that an agent calls again."""
        self._rows.told[self._rows_of(agents)] = _NOT_TOLD
        return self._set_standing(agents, _PINNED)

    def put_off(self, agents: Sequence[AgentId]) -> list[Change]:
        """The next use of ``agents`` comes last of all, until they call or are spoken of again. No
        prediction: nothing is scored by it."""
        self._has_put_off = True
        return self._set_standing(agents, _PUT_OFF)

    def let_go(self, agents: Sequence[AgentId]) -> list[Change]:
        """``agents`` are neither pinned nor put off any more."""
        return self._set_standing(agents, 0)

    def _set_standing(self, agents: Sequence[AgentId], standing: int) -> list[Change]:
        rows = self._rows_of(agents)
        self._rows.known[rows] = True
        self._rows.standing[rows] = standing
        return self._all_changes(rows)

    def _call_back(self, agents: Sequence[AgentId]) -> list[int]:
        """Those of ``agents`` that were put off are so no more; returns their rows."""
        if not self._has_put_off:
            return []
        rows = self._rows_of(agents)
        back = rows[self._rows.standing[rows] == _PUT_OFF]
        self._rows.standing[back] = 0
        found: list[int] = back.tolist()
        return found

    # -- hints that are ignored ---------------------------------------------------------------

    def ignore(self, name: str, ignored: Sequence[Ignored]) -> str:
        """Count ignored hints of source ``name``. Returns the warning to show: for a source's first
        ignored hint, else empty. From any thread."""
        [voice] = [hint for hint in self._voices if hint.name == name]
        score, is_first = voice.ledger.score, False
        with self._counting:
            for hint in ignored:
                is_first = is_first or not score.ignored
                score.ignored[hint.reason] = score.ignored.get(hint.reason, 0) + 1
                score.last_ignored = str(hint)
                self._ignored[hint.agent] = name, hint
                self._ignored.move_to_end(hint.agent)
                if len(self._ignored) > _MAX_KEPT:
                    self._ignored.popitem(last=False)
        if not is_first:
            return ""
        return (
            f"a hint of {name!r} says nothing: {ignored[0]}; others like it are counted and not "
            f"shown: see Engine.source_scores()[{name!r}]"
        )

    def _ignore(self, voice: Voice, ignored: Sequence[Ignored]) -> None:
        """``ignore``, with the warning shown: for the thread on which sources are asked."""
        if ignored and (text := self.ignore(voice.name, ignored)):
            try:
                warnings.warn(text, HintWarning, stacklevel=2)
            except HintWarning:  # users may turn warnings into errors; these must not end the run
                _log.warning("%s", text)

    def unheard(self, agent: AgentId) -> list[str]:
        """Why hints about ``agent`` may be missing: its last ignored hint, and names that a source
        may have misspelt. From any thread."""
        said = []
        if (last := self._ignored.get(agent)) is not None:
            said.append(f"a hint of {last[0]!r} was ignored: {last[1]}")
        for voice in self._voices[2:]:
            names = [*list(voice.strangers), *list(voice.misnamed)]
            near = nearest(agent, (name for name in names if not self.is_known(name)))
            if near is not None:
                said.append(
                    f"{voice.name!r} speaks of {near!r}, whom nobody has: is {agent!r} meant?"
                )
        return said

    def silent(self) -> list[str]:
        """Which sources say nothing, and why. From any thread."""
        silent = [(voice.name, silence_of(voice)) for voice in self._voices]
        return [f"{name!r} is silent: {why}" for name, why in silent if why]

    def _end_burst(self, agent: AgentId, time: float) -> None:
        """End the agent's burst of calls: a hint for a later time says that the burst is over."""
        row = self.roster.get(agent)
        if row in self._called and self.clock.now < time < math.inf:
            rows = self._rows
            if not rows.open_calls[row]:
                rows.usual_calls[row] = rows.calls[row]

    def _end_bursts(self, rows: Int64s, times: Times) -> None:
        """``_end_burst`` for ``[n]`` agents."""
        if self._called:
            columns = self._rows
            calls = columns.calls[rows]
            over = (calls > 0) & (columns.open_calls[rows] == 0)
            over &= (self.clock.now < times) & (times < math.inf)
            columns.usual_calls[rows[over]] = calls[over]

    # -- calls and ticks ----------------------------------------------------------------------

    def called(
        self, agent: AgentId, more_calls: int | None = None, next_call: float | None = None
    ) -> list[Change]:
        """Note that a request of ``agent`` arrived: a hint for this tick or before came true. If it
        is told that ``more_calls`` follow, the burst goes on until then, and no longer. A
        ``next_call``, a finite time in ticks, is ``expect`` of the agent behind this call."""
        row = self._row(agent)
        rows, now = self._rows, self.clock.now
        rows.known[row] = True
        if rows.standing.item(row) == _PUT_OFF:
            rows.standing[row] = 0
        first = row not in self._called
        rows.open_calls[row] = rows.open_calls.item(row) + 1
        rows.calls[row] = calls = rows.calls.item(row) + 1
        if more_calls is not None:
            rows.usual_calls[row] = calls + more_calls
        self._called[row] = None
        for voice in self._voices:
            voice.ledger.called(row, now, first=first)
        if next_call is not None:
            self._voices[0].ledger.post_one(row, next_call, 1.0, now)
        self._combine_one(row)
        rows.told[row] = now
        changes: list[Change] = [(agent, now)]  # each call: equal next uses are ordered by call
        if first and len(self._voices) > 2:
            changes += self._ask(lambda source: source.called(agent, now))
        return changes

    def ended(self, agent: AgentId) -> list[Change]:
        """Note that a request of ``agent`` ended, for whatever reason."""
        row = self._row(agent)
        self._rows.open_calls[row] = self._rows.open_calls.item(row) - 1
        return self._changes([row])

    def tick(self, wall_s: float, n: float = 1.0, *, to: float | None = None) -> list[Change]:
        """Move the clock, as ``Clock.tick`` does. Costs in proportion to the agents that called in
        the tick, the expired predictions and the sources' new ones, not to all agents."""
        self.clock.tick(wall_s, n, to=to)
        spoke, self._called = list(self._called), {}
        rows = self._rows
        for some in spoke if len(spoke) <= FEW else [np.array(spoke)]:
            rows.usual_calls[some], rows.calls[some] = rows.calls[some], 0
        over: list[int] = []
        for voice in self._voices:
            over += voice.ledger.expire(self.clock.now)
        if over:
            self._combine_many(np.array(over))
        met, self._met = self._met, []
        if asks := self.has_sources:
            self._expire_strangers()
        touched = [*spoke, *over, *met]
        few = len(touched) <= FEW
        changes = self._changes(touched) if few else self._all_changes(np.array(touched))
        return changes + self.poll() if asks else changes

    def meet(self, agent: AgentId) -> None:
        """Note that ``agent`` exists from now on: what sources said of it before counts from the
        next tick."""
        for voice in self._voices[2:]:
            if voice.strangers.pop(agent, None) is not None:
                row = self._row(agent)
                self._rows.known[row] = True
                self._met.append(row)

    def _expire_strangers(self) -> None:
        """Forget agents that do not exist when their predicted time has passed: most likely, a
        source misspells their names."""
        for voice in self._voices[2:]:
            rows, times = voice.strangers_due.take(self.clock.now)
            for row, time in zip(rows.tolist(), times.tolist(), strict=True):
                agent = self.roster.ids[row]
                said = voice.strangers.get(agent)
                if said is None or self.is_known(agent):
                    continue
                if said > time:  # it was spoken of again
                    voice.strangers_due.put_one(row, said, self.clock.now)
                    continue
                self._ignore(voice, [Ignored("nobody has this name", agent, time)])
                voice.misnamed[agent] = None
                if len(voice.misnamed) > _MAX_NAMES:
                    del voice.misnamed[next(iter(voice.misnamed))]
                self._unsay(voice, agent)

    def _unsay(self, voice: Voice, agent: AgentId) -> None:
        """Drop what ``voice`` said of a nonexistent agent, and the agent's row if no other source
        speaks of it."""
        voice.strangers.pop(agent, None)
        row = self._row(agent)
        voice.ledger.forget(row)
        if not any(agent in other.strangers for other in self._voices):
            self._rows.clear(row)
            self.roster.remove(agent)

    def poll(self) -> list[Change]:
        """Ask every source for its new predictions."""
        return self._ask(lambda source: None)

    def _ask(self, note: Callable[[Source], None]) -> list[Change]:
        """Call ``note`` with every source, and take in its new predictions. A source that fails is
        not asked again: predictions are advice, and must not end a simulation."""
        changes: list[Change] = []
        for voice in self._voices[2:]:
            if voice.source is None:
                continue
            with Foreign() as raised:
                note(voice.source)
                agents, at, confidence = voice.source.changes(self.clock.now)
                hints, ignored = read(agents, at, confidence)
                changes += self._say(voice, hints)
                self._ignore(voice, ignored)
            if raised.error is not None:
                voice.source, voice.failed = None, shown(raised.error)
                message = "source %r failed and is not asked again"
                report(_log, message, voice.name, error=raised.error)
        return changes

    # -- from estimates to changes ------------------------------------------------------------

    def _say(self, voice: Voice, hints: Hints) -> list[Change]:
        """Take in hints of ``voice``, in their order: for an agent named twice, the last holds."""
        agents, at, confidence = hints
        if isinstance(at, list):
            return self._say_each(voice, hints)
        rows = self._rows_of(agents)
        if len(np.unique(rows)) < len(rows):
            return self._say_each(voice, hints)
        for index in np.flatnonzero(~self._rows.known[rows]).tolist():
            self._introduce(voice, agents[index], float(at[index]))
        changed = voice.ledger.post(rows, at, np.asarray(confidence), self.clock.now)
        self._combine_many(changed)
        return self._tell(changed, agents if len(changed) == len(rows) else None)

    def _say_each(self, voice: Voice, hints: Hints) -> list[Change]:
        now, touched = self.clock.now, []
        for agent, time, sure in zip(*hints, strict=True):
            row = self._row(agent)
            if not self._rows.known[row]:
                self._introduce(voice, agent, float(time))
            if voice.ledger.post_one(row, float(time), float(sure), now):
                self._combine_one(row)
                touched.append(row)
        return self._changes(touched)

    def _introduce(self, voice: Voice, agent: AgentId, time: float) -> None:
        """Note that ``voice`` speaks of ``agent``, which no change has named yet and which may not
        exist."""
        if self.is_known(agent):
            self._rows.known[self._row(agent)] = True
        elif time == time:
            if time < voice.strangers.get(agent, math.inf):
                voice.strangers_due.put_one(self._row(agent), time, self.clock.now)
            voice.strangers[agent] = time
        else:
            self._unsay(voice, agent)

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
        """The ledger's predictions for ``rows`` and their confidence after the discount by trust,
        both ``[n]``; NaN and 0 where there is no credible prediction."""
        ledger.columns.grow(len(self.roster))
        confidence = ledger.columns.confidence[rows].astype(np.float64) * ledger.score.trust
        at = np.where(confidence >= LEAST, ledger.columns.at[rows], np.nan)
        return at, np.where(np.isnan(at), 0.0, confidence)

    def _combined(self, at: Times, confidence: Times) -> Times:
        """The result of the combining function; the default takes over for good if that fails."""
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
        standing = rows.standing.item(row)
        if rows.open_calls.item(row) or standing == _PINNED:
            return self.clock.now
        if standing == _PUT_OFF:
            return LATEST
        if 0 < rows.calls.item(row) < rows.usual_calls.item(row):
            return self.clock.now
        return float(rows.combined.item(row))

    def _changes(self, touched: Sequence[int]) -> list[Change]:
        changes: list[Change] = []
        told, known = self._rows.told, self._rows.known
        for row in touched:
            if not known.item(row):
                continue
            at, last = self._effective(row), told.item(row)
            if at != last and not (at != at and last != last):
                told[row] = at
                changes.append((self.roster.ids[row], None if math.isnan(at) else at))
        return changes

    def _all_changes(self, touched: Int64s) -> list[Change]:
        """``_changes`` of rows that may be named repeatedly, in the order of first mention."""
        if len(touched) > FEW:
            _, first = np.unique(touched, return_index=True)
            touched = touched[np.sort(first)]
        return self._tell(touched)

    def _tell(self, touched: Int64s, agents: Sequence[AgentId] | None = None) -> list[Change]:
        """``_changes`` in arrays, of rows that are named once. ``agents`` are the rows' agents, if
        the caller has them, which spares a look-up."""
        if len(touched) <= FEW:
            return self._changes(touched.tolist())
        rows = self._rows
        if not (known := rows.known[touched]).all():
            touched, agents = touched[known], None
        calls = rows.calls[touched]
        busy = (calls > 0) & (calls < rows.usual_calls[touched])
        standing = rows.standing[touched]
        at: Times = np.where(standing == _PUT_OFF, LATEST, rows.combined[touched])
        busy = (rows.open_calls[touched] > 0) | (standing == _PINNED) | (busy & (standing == 0))
        at = np.where(busy, self.clock.now, at)
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
