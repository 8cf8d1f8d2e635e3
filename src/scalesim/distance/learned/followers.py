"""Follower statistics: for each agent, the agents that most often call soon after it."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Collection

import numpy as np

from scalesim.distance.state import PlainState, put, taken

NUM_FOLLOWERS = 4
_RECENT = 8  # a call may follow one of the last so many calls
_WITHIN_TICKS = 4.0
_DECAY = 0.9  # factor on an agent's counts at each of its calls
_FADE = 0.5  # taken off the rarest follower's count by an agent that is not among the followers
_NEWEST = 0.25  # weight of the newest delay in the moving average


class Followers:
    """Counts of pairs (caller, follower), for at most four followers per agent.

    The counts are flat arrays of the standard library, 52 bytes per agent: reading and writing
    single numbers costs half of what it costs with numpy arrays.
    """

    def __init__(self) -> None:
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT)
        self._calls = array("f")
        # the next three are [num_rows, NUM_FOLLOWERS]
        self._who = array("i")  # rows of the followers; -1 = none
        self._count = array("f")
        self._delay = array("f")

    def observe(self, row: int, now: float) -> None:
        """Count a call of ``row`` at ``now``, in ticks."""
        missing = row + 1 - len(self._calls)
        if missing > 0:
            self._calls.extend([0.0] * missing)
            self._who.extend([-1] * (missing * NUM_FOLLOWERS))
            self._count.extend([0.0] * (missing * NUM_FOLLOWERS))
            self._delay.extend([0.0] * (missing * NUM_FOLLOWERS))
        for caller, time in {
            caller: time for caller, time in self._recent if now - time <= _WITHIN_TICKS
        }.items():
            if caller != row:
                self._followed(caller, row, now - time)
        self._calls[row] = self._calls[row] * _DECAY + 1.0
        for slot in self._slots(row):
            self._count[slot] *= _DECAY
        self._recent.append((row, now))

    def state(self) -> PlainState:
        """The counts of all rows."""
        return taken(self, "_recent", "_calls", "_who", "_count", "_delay")

    def restore(self, state: PlainState) -> None:
        """Have the counts that ``state`` gave."""
        put(self, state, "_recent", "_calls", "_who", "_count", "_delay")

    def forget(self, rows: Collection[int]) -> None:
        """Drop ``rows`` as callers and as followers: other agents may get the rows. Costs in
        proportion to all rows."""
        gone = set(rows)
        recent = [(row, time) for row, time in self._recent if row not in gone]
        self._recent = deque(recent, maxlen=_RECENT)
        known = [row for row in rows if row < len(self._calls)]
        if not known:
            return
        who, count = np.frombuffer(self._who, np.intc), np.frombuffer(self._count, np.single)
        calls = np.frombuffer(self._calls, np.single)
        calls[known] = 0.0
        away = np.isin(who, known)
        away.reshape(-1, NUM_FOLLOWERS)[known] = True
        who[away], count[away] = -1, 0.0

    def after(self, row: int, least: float) -> list[tuple[int, float, float]]:
        """The followers of ``row`` with a probability of at least ``least``: (row, delay in ticks,
        probability) of each."""
        calls = self._calls[row]
        if calls < 2.0:  # one or two calls are too few to tell
            return []
        needed = least * (calls + 1.0)
        return [
            (self._who[slot], self._delay[slot], self._count[slot] / (calls + 1.0))
            for slot in self._slots(row)
            if self._count[slot] >= needed
        ]

    def _followed(self, caller: int, row: int, delay: float) -> None:
        slots = self._slots(caller)
        who, count = self._who, self._count
        for slot in slots:
            if who[slot] == row:
                count[slot] = min(count[slot] + 1.0, self._calls[caller])  # at most once per call
                self._delay[slot] += _NEWEST * (delay - self._delay[slot])
                return
        rarest = min(slots, key=count.__getitem__)
        count[rarest] -= _FADE
        if count[rarest] <= 0.0:
            who[rarest], count[rarest], self._delay[rarest] = row, 1.0, delay

    @staticmethod
    def _slots(row: int) -> range:
        return range(row * NUM_FOLLOWERS, (row + 1) * NUM_FOLLOWERS)
