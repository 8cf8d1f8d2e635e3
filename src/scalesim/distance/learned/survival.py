"""Survival curves of pauses: the distribution of the time to the next call, given the time so far.

Agents of a kind share a curve, which is shrunk towards the curve of all agents while it has few
pauses. Pauses that still last are counted as censored: they lasted at least so long (Kaplan and
Meier, 1958).

The *distance* is the inverse of the best call rate attainable by waiting, calls per tick (a
Gittins index, 1979; as an eviction order: least hit density, Beckmann, Chen and Cidon, NSDI 2018),
not the mean remaining time: an agent that returns either at once or much later is worth keeping
only briefly.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from scalesim.core import Int64s
from scalesim.distance.estimates import Times
from scalesim.distance.scores import MIN_TOLERANCE_TICKS, TOLERANCE
from scalesim.distance.state import PlainState, put, taken

_FINE = 16  # ages up to this, in ticks, have a bin each; above, there are four bins per octave
_OCTAVES = 17
_BEGINS = np.concatenate([
    np.arange(_FINE), (_FINE * 2.0 ** (np.arange(4 * _OCTAVES + 1) / 4.0)).round(),
])  # fmt: skip
_WIDTHS = np.diff(_BEGINS)
NUM_BINS = len(_WIDTHS)
_LEAN = 32.0  # weight of the curve of all agents in a kind's curve, in pauses
_GUESS = 0.5  # weight of the prior in the curve of all agents, in pauses
_FORGOTTEN = 0.01  # counts below this many pauses are set to 0
_SURE = 0.7  # a call at least so likely to be on time has a date: its distance is whole ticks
_FADE = 0.9  # factor on all counts at each fit
_STATE = ("num_seen", "num_new", "num_fits", "_ended", "distance", "likely", "until")

_Table: TypeAlias = npt.NDArray[np.float64]  # [num_kinds, NUM_BINS]


def bin_of(age: float) -> int:
    """The bin of an age, in ticks."""
    if age < _FINE:
        return int(age) if age > 0.0 else 0
    return min(int(np.searchsorted(_BEGINS, age, side="right")) - 1, NUM_BINS - 1)


def bins_of(ages: Times) -> Int64s:
    """``bin_of`` of each of ``ages``, ``[n]``."""
    found: Int64s = np.searchsorted(_BEGINS, ages, side="right") - 1
    return found.clip(0, NUM_BINS - 1)


class Survival:
    """Survival curves of ``num_kinds`` kinds of agents.

    ``fit`` sets three tables ``[num_kinds, NUM_BINS]``, by kind and bin of the current pause's age:
    ``distance`` in ticks; ``likely``, the probability that the call comes about then, within a
    quarter of the distance or one tick; ``until``, the age in ticks from which on the prediction
    differs, if the agent has not called.
    """

    def __init__(self, num_kinds: int) -> None:
        shape = (num_kinds, NUM_BINS)
        self.num_seen = self.num_new = 0  # pauses: in all, and since the last fit
        self.num_fits = 0
        self._ended = np.zeros(shape)  # pauses by the age at which they ended
        self.distance, self.likely, self.until = np.zeros(shape), np.zeros(shape), np.zeros(shape)

    def observe(self, kind: int, pause: float) -> None:
        """Count a pause of ``pause`` ticks of an agent that was of ``kind`` meanwhile."""
        self._ended[kind, bin_of(pause)] += 1.0
        self.num_new += 1
        self.num_seen += 1

    def state(self) -> PlainState:
        """The pauses, and the tables."""
        return taken(self, *_STATE)

    def restore(self, state: PlainState) -> None:
        """Have what ``state`` gave. Raises ``ValueError`` for tables of another shape."""
        if state["_ended"].shape != self._ended.shape:
            raise ValueError(f"a table of {state['_ended'].shape}, not {self._ended.shape}")
        put(self, state, *_STATE)

    def fit(self, kinds: Int64s, ages: Times) -> None:
        """Estimate the curves anew. ``kinds`` and ``ages``, ``[n]``, are those of the pauses that
        still last, ages in ticks."""
        waiting = np.zeros_like(self._ended)
        np.add.at(waiting, (kinds, bins_of(ages)), 1.0)
        known = np.flatnonzero(self._ended.any(axis=1))
        distance, over = _distances(_hazards(self._ended, waiting, known))
        likely = _on_time(distance, over)
        sure = likely >= _SURE  # whole ticks, so that agents of one tick keep their order
        distance[sure] = distance[sure].round()
        drawn = np.zeros(len(self._ended), np.int64)  # kinds without a pause use the common curve
        drawn[known] = 1 + np.arange(len(known))
        self.distance, self.likely = distance[drawn], likely[drawn]
        self.until = _revisions(distance)[drawn]
        self._ended *= _FADE
        self._ended[self._ended < _FORGOTTEN] = 0.0
        self.num_new = 0
        self.num_fits += 1


def _hazards(ended: _Table, waiting: _Table, known: Int64s) -> _Table:
    """The hazards ``[1 + len(known), NUM_BINS]``: of the pauses that reach a bin, the share that
    ends in it. The first row is of all agents, the others are of the ``known`` kinds."""
    reached = _from_here(ended) + _from_here(waiting) - waiting  # these still are in their bin
    unknown = _WIDTHS / (_BEGINS[:-1] + _WIDTHS)  # prior: a pause lasts as long again as so far
    of_all = (ended.sum(0) + _GUESS * unknown) / (reached.sum(0) + _GUESS)
    of_kind = (ended[known] + _LEAN * of_all) / (reached[known] + _LEAN)
    return np.concatenate([of_all[None], of_kind])


def _from_here(counts: _Table) -> _Table:
    """Sums over this bin and all later ones."""
    sums: _Table = counts[:, ::-1].cumsum(axis=1)[:, ::-1]
    return sums


def _distances(hazards: _Table) -> tuple[_Table, _Table]:
    """The distances, in ticks, like ``hazards``; and the share of pauses that have ended by the
    beginning of each bin, ``[n, NUM_BINS + 1]``."""
    lasts: _Table = np.ones((len(hazards), NUM_BINS + 1))
    lasts[:, 1:] = np.cumprod(1.0 - hazards, axis=1)
    # a pause that ends in a bin ends in the bin's middle; in a bin of one tick, at its beginning
    spent = lasts[:, :-1] * (_WIDTHS * (1.0 - hazards) + hazards * (_WIDTHS - 1.0) / 2.0)
    ticks = np.concatenate([np.zeros((len(hazards), 1)), spent.cumsum(axis=1)], axis=1)
    distance = np.empty_like(hazards)
    for begin in range(NUM_BINS):
        calls = lasts[:, begin, None] - lasts[:, begin + 1 :]
        waits = ticks[:, begin + 1 :] - ticks[:, begin, None]
        distance[:, begin] = (waits / np.maximum(calls, 1e-300)).min(axis=1)
    return distance, 1.0 - lasts


def _on_time(distance: _Table, over: _Table) -> _Table:
    """The probability that a call comes about ``distance`` after the beginning of each bin."""
    slack = np.maximum(MIN_TOLERANCE_TICKS, TOLERANCE * distance)
    middle = _BEGINS[:-1] + distance
    likely = np.empty_like(distance)
    for kind, row in enumerate(over):
        to = np.interp(middle[kind] + slack[kind] + 1.0, _BEGINS, row)
        since = np.interp(np.maximum(middle[kind] - slack[kind], _BEGINS[:-1]), _BEGINS, row)
        likely[kind] = (to - since) / np.maximum(1.0 - row[:-1], 1e-300)
    return likely.clip(0.0, 1.0)


def _revisions(distance: _Table) -> _Table:
    """The age, in ticks, from which on the prediction differs from the bin's; at the latest, the
    predicted time itself."""
    comes = _BEGINS[:-1] + distance
    until = np.array(comes)
    for begin in range(NUM_BINS):
        moved = np.abs(comes[:, begin:] - comes[:, begin, None])
        other = moved > np.maximum(MIN_TOLERANCE_TICKS, TOLERANCE * distance[:, begin:])
        first = np.where(other.any(axis=1), other.argmax(axis=1), NUM_BINS - begin)
        until[:, begin] = np.minimum(until[:, begin], _BEGINS[begin + first])
    return until
