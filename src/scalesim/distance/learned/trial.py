"""Whether predictions make a better order than last use does: tried out, before they are used.

A sample of agents plays in small caches that hold names only: in each size, one where the agent
that was used longest ago gives way, and one where the agent that is predicted to come last does.
Whichever misses less shows what an order is worth for the whole (a small sample of keys stands for
a large cache: Waldspurger and others, FAST 2015; caches that compete by sample: Qureshi and others,
ISCA 2007).
"""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt

from scalesim.core import Int64s
from scalesim.distance.estimates import Times

NUM_SAMPLED = 128
SHARES = (0.125, 0.25, 0.5)  # of the sampled agents, that a cache holds
ENOUGH = 96.0  # misses under last use before the first verdict
GAIN = 0.97  # of last use's misses: what predictions must get down to, to be listened to
LOSS = 1.02, 1.05  # of the same, in one size alone: what may not be exceeded, before and after
_NOISE = 2.0  # misses
_FADE = 1.0 - 1.0 / 2048.0  # of all counts, at each call


class Trial:
    """``misses`` is ``[2, len(SHARES)]``: under last use, and as predicted, the past decaying."""

    def __init__(self, seed: int) -> None:
        self.misses = np.zeros((2, len(SHARES)))
        self.is_won = False
        self._random = random.Random(seed)
        self._marks: list[float] = []  # of the sampled, by place: whose is smallest stays
        self._rows = np.full(NUM_SAMPLED, -1, np.int64)
        self._places: dict[int, int] = {}
        self._seq = np.zeros(NUM_SAMPLED)  # of the last calls
        self._num_calls = 0
        self._held = np.zeros((2, len(SHARES), NUM_SAMPLED), bool)

    @property
    def kept(self) -> float:
        """The share of last use's misses that is left as predicted; 1 while nothing is known."""
        last_use, predicted = self.misses.sum(axis=1)
        return float(predicted / last_use) if last_use else 1.0

    def samples(self, row: int) -> bool:
        return row in self._places

    def sampled(self) -> Int64s:
        """The rows in the sample."""
        return self._rows[: len(self._marks)]

    def enter(self, row: int) -> None:
        """A new agent: each is in the sample with the same probability."""
        mark = self._random.random()
        place = len(self._marks)
        if place < NUM_SAMPLED:
            self._marks.append(mark)
        else:
            place = max(range(NUM_SAMPLED), key=self._marks.__getitem__)
            if mark > self._marks[place]:
                return
            self._marks[place] = mark
            del self._places[int(self._rows[place])]
            self._held[:, :, place] = False
        self._rows[place], self._places[row] = row, place

    def forget(self, row: int) -> None:
        """The agent of ``row`` is gone; the last of the sampled takes its place."""
        place = self._places.pop(row, None)
        if place is None:
            return
        last = len(self._marks) - 1
        mark = self._marks.pop()
        if place < last:
            self._marks[place] = mark
            self._rows[place], self._seq[place] = self._rows[last], self._seq[last]
            self._held[:, :, place] = self._held[:, :, last]
            self._places[int(self._rows[place])] = place
        self._rows[last], self._seq[last] = -1, 0.0
        self._held[:, :, last] = False

    def called(self, row: int, at: Times, last: Times, now: float) -> None:
        """``row`` of the sample called; ``at`` and ``last``, ``[len(sampled())]``: what is said of
        each (NaN: nothing), and when each called before."""
        place, count = self._places[row], len(self._marks)
        self._num_calls += 1
        self._seq[place] = self._num_calls
        missed = ~self._held[:, :, place]
        self.misses *= _FADE
        self.misses += missed
        self._held[:, :, place] = True
        if missed.any():
            expected = np.where(np.isnan(at), 2.0 * now - last, at)
            expected[place] = -np.inf  # it is being used
            orders = (-self._seq[:count], expected + 1e-9 * self._seq[:count])
            for order, resident in zip(orders, self._held[:, :, :count], strict=True):
                self._make_room(order, resident, count)
        self._judge()

    def _make_room(self, order: Times, resident: npt.NDArray[np.bool_], count: int) -> None:
        for size, share in enumerate(SHARES):
            if resident[size].sum() > max(1, int(share * count)):
                resident[size, np.where(resident[size], order, -np.inf).argmax()] = False

    def _judge(self) -> None:
        last_use, predicted = self.misses
        if last_use.sum() < ENOUGH:
            return
        in_all, in_one = (1.0, LOSS[1]) if self.is_won else (GAIN, LOSS[0])
        self.is_won = bool(
            predicted.sum() <= in_all * last_use.sum()
            and (predicted <= in_one * last_use + _NOISE).all()
        )
