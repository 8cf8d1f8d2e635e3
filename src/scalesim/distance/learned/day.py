"""The time of day: how busy everybody is by the hour, as a clock that runs by calls."""

from __future__ import annotations

import math
from typing import TypeVar, cast

import numpy as np

from scalesim.distance.estimates import Times

T = TypeVar("T", float, Times)
NUM_HOURS = 24
_PRIOR_DAYS = 0.25  # of an even day, so that a quiet hour is never quite still


class Day:
    """``length`` of a day in ticks. ``busy`` time passes fast while many call and slowly at night;
    over a day it equals the clock's. A pause measured in it does not depend on when it began."""

    def __init__(self, length: float) -> None:
        self.length = length
        self._calls = [0.0] * NUM_HOURS
        self._spent = [0.0] * NUM_HOURS  # ticks seen of each hour
        self._now = 0.0
        self._hours = [length * hour / NUM_HOURS for hour in range(NUM_HOURS + 1)]
        self._until = self._hours  # busy time at each

    def observe(self, now: float) -> None:
        """A call at ``now``."""
        self._calls[self._hour(now)] += 1.0

    def pass_to(self, now: float) -> None:
        """The clock moved; at the turn of an hour the profile is drawn anew."""
        hour = self._hour(self._now)
        self._spent[hour] += min(now - self._now, self.length / NUM_HOURS)
        self._now = now
        if self._hour(now) != hour:
            self._redraw()

    def busy(self, time: T) -> T:
        """Busy time at ``time`` of the clock, a number or ``[n]``."""
        days, in_day = np.divmod(time, self.length)
        found = days * self.length + np.interp(in_day, self._hours, self._until)
        return cast(T, found)  # type: ignore[redundant-cast]  # of arrays, not of numbers

    def clock(self, busy: T) -> T:
        """The time of the clock at which it is ``busy``."""
        days, in_day = np.divmod(busy, self.length)
        found = days * self.length + np.interp(in_day, self._until, self._hours)
        return cast(T, found)  # type: ignore[redundant-cast]  # of arrays, not of numbers

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
