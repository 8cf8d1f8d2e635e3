"""How long until the next call, given how long ago the last one was: survival curves of pauses.

Agents of a kind share a curve, which leans on that of all agents while it knows little. Pauses that
are not over yet count as well: they lasted at least so long (Kaplan and Meier, 1958). From a curve
comes a *distance*: the best rate at which an agent of that age gives calls for the ticks that it is
waited for, inverted (the index of Gittins, 1979; as an order of eviction: least hit density,
Beckmann, Chen and Cidon, NSDI 2018). It is not the mean: who often calls again at once, or
else much later, is worth keeping for a moment only.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from scalesim.core import Int64s
from scalesim.distance.estimates import Times
from scalesim.distance.scores import MIN_TOLERANCE_TICKS, TOLERANCE

_FINE = 16  # ages up to this have a bin each; from there on, four bins an octave
_OCTAVES = 17
_BEGINS = np.concatenate([
    np.arange(_FINE), (_FINE * 2.0 ** (np.arange(4 * _OCTAVES + 1) / 4.0)).round(),
])  # fmt: skip
_WIDTHS = np.diff(_BEGINS)
NUM_BINS = len(_WIDTHS)
_LEAN = 32.0  # pauses that what is known of all agents counts for in a kind's curve
_GUESS = 0.5  # the same, of knowing nothing, in the curve of all
_FORGOTTEN = 0.01  # pauses
_SURE = 0.7
_FADE = 0.9  # of all that is known, at each fit

_Table: TypeAlias = npt.NDArray[np.float64]  # [num_kinds, NUM_BINS]


def bin_of(age: float) -> int:
    """The bin that ``age`` ticks lie in."""
    if age < _FINE:
        return int(age) if age > 0.0 else 0
    return min(int(np.searchsorted(_BEGINS, age, side="right")) - 1, NUM_BINS - 1)


def bins_of(ages: Times) -> Int64s:
    """``[n]``, ``bin_of`` each."""
    found: Int64s = np.searchsorted(_BEGINS, ages, side="right") - 1
    return found.clip(0, NUM_BINS - 1)


class Survival:
    """Curves of ``num_kinds`` kinds of agents.

    After ``fit``, by kind and bin of age: ``distance`` in ticks; ``likely``, how often the call
    then comes within a quarter of that or a tick; ``until``, the age at which something else is to
    be said, if the agent has not called.
    """

    def __init__(self, num_kinds: int) -> None:
        shape = (num_kinds, NUM_BINS)
        self.num_seen = self.num_new = 0  # pauses, in all and since the last fit
        self.num_fits = 0
        self._ended = np.zeros(shape)  # pauses that ended at this age
        self.distance, self.likely, self.until = np.zeros(shape), np.zeros(shape), np.zeros(shape)

    def observe(self, kind: int, pause: float) -> None:
        """An agent that was of ``kind`` called after ``pause`` ticks."""
        self._ended[kind, bin_of(pause)] += 1.0
        self.num_new += 1
        self.num_seen += 1

    def fit(self, kinds: Int64s, ages: Times) -> None:
        """Draw the curves anew; ``[n]`` agents wait, of these kinds, for so long."""
        waiting = np.zeros_like(self._ended)
        np.add.at(waiting, (kinds, bins_of(ages)), 1.0)
        known = np.flatnonzero(self._ended.any(axis=1))
        distance, over = _distances(_hazards(self._ended, waiting, known))
        likely = _on_time(distance, over)
        sure = likely >= _SURE  # then it is a date, and those of one tick go in their order
        distance[sure] = distance[sure].round()
        drawn = np.zeros(len(self._ended), np.int64)  # what is not known is as all are
        drawn[known] = 1 + np.arange(len(known))
        self.distance, self.likely = distance[drawn], likely[drawn]
        self.until = _revisions(distance)[drawn]
        self._ended *= _FADE
        self._ended[self._ended < _FORGOTTEN] = 0.0
        self.num_new = 0
        self.num_fits += 1


def _hazards(ended: _Table, waiting: _Table, known: Int64s) -> _Table:
    """The share of pauses that end in a bin, of those that reach it: of all agents, then of the
    ``known`` kinds."""
    reached = _from_here(ended) + _from_here(waiting) - waiting  # these have not passed it yet
    unknown = _WIDTHS / (_BEGINS[:-1] + _WIDTHS)  # as long again as it has lasted: who knows
    of_all = (ended.sum(0) + _GUESS * unknown) / (reached.sum(0) + _GUESS)
    of_kind = (ended[known] + _LEAN * of_all) / (reached[known] + _LEAN)
    return np.concatenate([of_all[None], of_kind])


def _from_here(counts: _Table) -> _Table:
    sums: _Table = counts[:, ::-1].cumsum(axis=1)[:, ::-1]
    return sums


def _distances(hazards: _Table) -> tuple[_Table, _Table]:
    """``distance``, and the share of pauses that are over, ``[num_kinds, NUM_BINS + 1]``."""
    lasts: _Table = np.ones((len(hazards), NUM_BINS + 1))
    lasts[:, 1:] = np.cumprod(1.0 - hazards, axis=1)
    # a pause that ends in a bin ends in the middle of it, one of a whole tick at its beginning
    spent = lasts[:, :-1] * (_WIDTHS * (1.0 - hazards) + hazards * (_WIDTHS - 1.0) / 2.0)
    ticks = np.concatenate([np.zeros((len(hazards), 1)), spent.cumsum(axis=1)], axis=1)
    distance = np.empty_like(hazards)
    for begin in range(NUM_BINS):
        calls = lasts[:, begin, None] - lasts[:, begin + 1 :]
        waits = ticks[:, begin + 1 :] - ticks[:, begin, None]
        distance[:, begin] = (waits / np.maximum(calls, 1e-300)).min(axis=1)
    return distance, 1.0 - lasts


def _on_time(distance: _Table, over: _Table) -> _Table:
    """How likely a call comes about ``distance`` after the beginning of a bin."""
    slack = np.maximum(MIN_TOLERANCE_TICKS, TOLERANCE * distance)
    middle = _BEGINS[:-1] + distance
    likely = np.empty_like(distance)
    for kind, row in enumerate(over):
        to = np.interp(middle[kind] + slack[kind] + 1.0, _BEGINS, row)
        since = np.interp(np.maximum(middle[kind] - slack[kind], _BEGINS[:-1]), _BEGINS, row)
        likely[kind] = (to - since) / np.maximum(1.0 - row[:-1], 1e-300)
    return likely.clip(0.0, 1.0)


def _revisions(distance: _Table) -> _Table:
    """From which age on another time is to be said: at the latest when the one said has passed."""
    comes = _BEGINS[:-1] + distance
    until = np.array(comes)
    for begin in range(NUM_BINS):
        moved = np.abs(comes[:, begin:] - comes[:, begin, None])
        other = moved > np.maximum(MIN_TOLERANCE_TICKS, TOLERANCE * distance[:, begin:])
        first = np.where(other.any(axis=1), other.argmax(axis=1), NUM_BINS - begin)
        until[:, begin] = np.minimum(until[:, begin], _BEGINS[begin + first])
    return until
