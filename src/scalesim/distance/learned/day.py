"""The daily activity profile: a clock that runs in proportion to the rate of calls by hour."""

from __future__ import annotations

import math
from typing import TypeVar, cast

import numpy as np

from scalesim.distance.estimates import Times
from scalesim.distance.state import PlainState, put, taken

T = TypeVar("T", float, Times)
NUM_HOURS = 24
_PRIOR_DAYS = 0.25  # days of even activity assumed at first, so that no hour has a rate of 0


class Day:
    """A change of time between the clock and busy time, for days of ``length`` ticks.

    Busy time passes fast while many agents call, and slowly at night; over a whole day it equals
    the clock's. So the length of a pause in busy time does not depend on the hour of its beginning.
    """

    def __init__(self, length: float) -> None:
        self.length = length
        self._calls = [0.0] * NUM_HOURS
        self._spent = [0.0] * NUM_HOURS  # ticks observed of each hour
        self._now = 0.0
        self._hours = [length * hour / NUM_HOURS for hour in range(NUM_HOURS + 1)]
        self._until = self._hours  # busy time at the beginning of each hour, and at the day's end

    def observe(self, now: float) -> None:
        """Count a call at ``now``."""
        self._calls[self._hour(now)] += 1.0

    def pass_to(self, now: float) -> None:
        """Note the clock's time; at the turn of an hour, estimate the profile anew."""
        hour = self._hour(self._now)
        self._spent[hour] += min(now - self._now, self.length / NUM_HOURS)
        self._now = now
        if self._hour(now) != hour:
            self._redraw()

    def busy(self, time: T) -> T:
        """The busy time at ``time`` of the clock, a number or ``[n]``."""
        days, in_day = np.divmod(time, self.length)
        found = days * self.length + np.interp(in_day, self._hours, self._until)
        return cast(T, found)  # type: ignore[redundant-cast]  # of arrays, not of numbers

    def clock(self, busy: T) -> T:
        """The time of the clock at busy time ``busy``: the inverse of ``busy``."""
        days, in_day = np.divmod(busy, self.length)
        found = days * self.length + np.interp(in_day, self._until, self._hours)
        return cast(T, found)  # type: ignore[redundant-cast]  # of arrays, not of numbers

    def state(self) -> PlainState:
        """The profile."""
        return taken(self, "length", "_calls", "_spent", "_now", "_until")

    def restore(self, state: PlainState) -> None:
        """Have the profile that ``state`` gave. Raises ``ValueError`` for a day of another
        length."""
        if state["length"] != self.length:
            raise ValueError(f"a day of {state['length']} ticks, not {self.length}")
        put(self, state, "_calls", "_spent", "_now", "_until")

    def _redraw(self) -> None:
        seen = sum(self._spent)
        mean = sum(self._calls) / seen if seen else 0.0
        if not mean:
            return
        prior = _PRIOR_DAYS * self.length / NUM_HOURS
        rates = [
            (calls / mean + prior) / (spent + prior)
            for calls, spent in zip(self._calls, self._spent, strict=True)
        ]
        total = math.fsum(rates)
        self._until = [self.length * math.fsum(rates[:hour]) / total for hour in range(25)]

    def _hour(self, time: float) -> int:
        return min(int(time % self.length / self.length * NUM_HOURS), NUM_HOURS - 1)
