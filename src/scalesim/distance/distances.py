"""Invocation distance: who is needed when. Declared hints, open calls and bursts become one next
use.

An agent is needed *now* while it calls, and while its burst of calls may go on; else at the time
declared for it, until that hint has expired; else nobody knows. Every estimate is advice: it moves
state earlier or later and never changes a result. Knows nothing of memory: changes are returned,
for the engine to pass on.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass

from scalesim.core import AgentId
from scalesim.distance.clock import Clock

MIN_PATIENCE_STEPS = 2.0
Change = tuple[AgentId, float | None]
"""An agent and its new next use, in steps of the clock; ``None`` = unknown."""


@dataclass(slots=True)
class _Record:
    declared: float | None = None
    open_calls: int = 0
    calls: int = 0  # in this step
    usual_calls: int = 0  # in the last step in which it called
    told: float | None = None  # the next use that was last returned


class Distances:
    """The next use of every agent that was ever heard of."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.num_ignored = 0  # hints that were not a time
        self.num_expired = 0
        self._records: dict[AgentId, _Record] = {}
        self._deadlines: list[tuple[float, int, AgentId, float]] = []
        self._seq = 0
        self._called: dict[AgentId, None] = {}  # in this step, in order

    def next_use(self, agent: AgentId) -> float | None:
        record = self._records.get(agent)
        return None if record is None else self._effective(record)

    def expect(self, agent: AgentId, at: float) -> list[Change]:
        """``agent`` will call at time ``at`` (steps). A time in the past means now. What is no
        number, or not finite, is ignored and counted: ``inf`` and NaN say nothing about a time."""
        try:
            at = float(at)
        except (TypeError, ValueError, OverflowError):
            at = math.nan
        if not math.isfinite(at):
            self.num_ignored += 1
            return []
        now = self.clock.now
        at = max(at, now)
        record = self._record(agent)
        record.declared = at
        if at > now and record.calls and not record.open_calls:
            record.usual_calls = record.calls  # it says itself that this burst is over
        self._seq += 1
        patience = max(MIN_PATIENCE_STEPS, at - now)
        heapq.heappush(self._deadlines, (at + patience, self._seq, agent, at))
        return self._changes((agent,))

    def wake(self, agent: AgentId) -> list[Change]:
        """``agent`` will call at once, whatever was said before."""
        return self.expect(agent, self.clock.now)

    def called(self, agent: AgentId) -> list[Change]:
        """A request of ``agent`` arrived. A hint for now or earlier has come true."""
        record = self._record(agent)
        record.open_calls += 1
        record.calls += 1
        self._called[agent] = None
        if record.declared is not None and record.declared <= self.clock.now:
            record.declared = None
        record.told = None  # each call is news: the newest is served last
        return self._changes((agent,))

    def ended(self, agent: AgentId) -> list[Change]:
        """A request of ``agent`` ended, however it did."""
        record = self._record(agent)
        record.open_calls -= 1
        return self._changes((agent,))

    def advance(self, wall_s: float, *, to: float | None = None) -> list[Change]:
        """Move the clock. Costs what spoke in the step and what expired, not what exists."""
        self.clock.advance(wall_s, to=to)
        changed = self._called
        for agent in changed:
            record = self._records[agent]
            record.usual_calls, record.calls = record.calls, 0
        self._called = {}
        while self._deadlines and self._deadlines[0][0] < self.clock.now:
            _, _, agent, declared = heapq.heappop(self._deadlines)
            record = self._records[agent]
            if record.declared == declared:
                record.declared = None
                self.num_expired += 1
                changed[agent] = None
        return self._changes(changed)

    def _effective(self, record: _Record) -> float | None:
        in_burst = 0 < record.calls < record.usual_calls
        if record.open_calls or in_burst:
            return self.clock.now
        return record.declared

    def _changes(self, agents: Iterable[AgentId]) -> list[Change]:
        changes: list[Change] = []
        for agent in agents:
            record = self._records[agent]
            next_use = self._effective(record)
            if next_use != record.told:
                record.told = next_use
                changes.append((agent, next_use))
        return changes

    def _record(self, agent: AgentId) -> _Record:
        record = self._records.get(agent)
        if record is None:
            record = self._records[agent] = _Record()
        return record
