"""A trial of predictions against LRU, in shadow caches, before the predictions are used.

A sample of agents runs in small caches that hold names only. For each size there is a pair: one
cache evicts the least recently used agent, the other the agent with the latest predicted call. The
misses of the pair tell which order is better for all agents. A small sample of keys stands for a
large cache (Waldspurger and others, FAST 2015); orders can compete on samples (Qureshi and others,
ISCA 2007).
"""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt

from scalesim.core import Int64s
from scalesim.distance.estimates import Times
from scalesim.distance.state import PlainState, put, taken

NUM_SAMPLED = 128
SHARES = (0.125, 0.25, 0.5)  # sizes of the caches, as shares of the sampled agents
ENOUGH = 96.0  # misses under LRU before the first verdict
GAIN = 0.97  # predictions win once their misses are at most this share of LRU's
LOSS = 1.02, 1.05  # the same limit for each size alone: before and after they have won
_NOISE = 2.0  # misses
_STATE = ("misses", "is_won", "_marks", "_rows", "_seq", "_num_calls", "_held")
_FADE = 1.0 - 1.0 / 2048.0  # factor on all counts at each call


class Trial:
    """Shadow caches of a sample of agents.

    ``misses`` is ``[2, len(SHARES)]``, decaying counts: under LRU, and under the predicted order.
    ``is_won`` tells whether the predictions are good enough to be used.
    """

    def __init__(self, seed: int) -> None:
        self.misses = np.zeros((2, len(SHARES)))
        self.is_won = False
        self._random = random.Random(seed)
        # a random mark of each sampled agent, by place: the sample is the smallest marks
        self._marks: list[float] = []
        self._rows = np.full(NUM_SAMPLED, -1, np.int64)
        self._places: dict[int, int] = {}
        self._seq = np.zeros(NUM_SAMPLED)  # number of the last call, by place
        self._num_calls = 0
        self._held = np.zeros((2, len(SHARES), NUM_SAMPLED), bool)

    @property
    def kept(self) -> float:
        """Misses under the predicted order over misses under LRU; 1 while there are none."""
        last_use, predicted = self.misses.sum(axis=1)
        return float(predicted / last_use) if last_use else 1.0

    def samples(self, row: int) -> bool:
        """Whether ``row`` is in the sample."""
        return row in self._places

    def sampled(self) -> Int64s:
        """The rows in the sample, by place, ``[n]``."""
        return self._rows[: len(self._marks)]

    def state(self) -> PlainState:
        """The sample, its caches, and what it draws from."""
        return {**taken(self, *_STATE), "random": list(self._random.getstate()[1])}

    def restore(self, state: PlainState) -> None:
        """Have what ``state`` gave."""
        put(self, state, *_STATE)
        self._random.setstate((3, tuple(state["random"]), None))
        self._places = {int(row): place for place, row in enumerate(self.sampled())}

    def enter(self, row: int) -> None:
        """Offer a new agent to the sample: every agent is in it with the same probability."""
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
        """Remove ``row``, whose agent is gone, from the sample; the last place moves into its."""
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
        """Run a call of ``row``, which is in the sample, through all caches. ``at`` and ``last``,
        ``[len(sampled())]`` in ticks, are the predicted next call of each sampled agent (NaN: no
        prediction) and its last call."""
        place, count = self._places[row], len(self._marks)
        self._num_calls += 1
        self._seq[place] = self._num_calls
        missed = ~self._held[:, :, place]
        self.misses *= _FADE
        self.misses += missed
        self._held[:, :, place] = True
        if missed.any():
            expected = np.where(np.isnan(at), 2.0 * now - last, at)
            expected[place] = -np.inf  # in use
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
