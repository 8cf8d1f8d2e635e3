"""How agents pause: the last few gaps of each, and the kind of agent that they make it.

A kind is the usual gap and the last one, each by octave: who keeps to a rhythm, who is in the
middle of a conversation, who has just come out of a long silence.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right

from scalesim.distance.scores import MIN_TOLERANCE_TICKS, TOLERANCE

NUM_GAPS = 8
_OCTAVES = 12  # of gaps that are told apart; longer ones are alike


NUM_KINDS = (_OCTAVES + 1) ** 2


class Gaps:
    """Per agent the last eight gaps between its calls, in ticks: 36 bytes each."""

    def __init__(self) -> None:
        self._num = array("i")
        self._gaps = array("f")  # [num_rows, NUM_GAPS], a ring each

    def observe(self, row: int, gap: float) -> int:
        """A call, ``gap`` after the one before (NaN for the first): the agent's kind from now
        on."""
        missing = row + 1 - len(self._num)
        if missing > 0:
            self._num.extend([0] * missing)
            self._gaps.extend([0.0] * (missing * NUM_GAPS))
        if gap != gap:
            return 0
        self._gaps[row * NUM_GAPS + self._num[row] % NUM_GAPS] = gap
        self._num[row] += 1
        return _octave(self._usual(row)) * (_OCTAVES + 1) + _octave(gap)

    def forget(self, row: int) -> None:
        """Whoever has ``row`` next has not called yet."""
        if row < len(self._num):
            self._num[row] = 0

    def _usual(self, row: int) -> float:
        """The gap around which most of the last ones lie."""
        num = min(self._num[row], NUM_GAPS)
        gaps = sorted(self._gaps[row * NUM_GAPS : row * NUM_GAPS + num])
        best, hits = gaps[0], 0
        for gap in gaps:
            slack = max(MIN_TOLERANCE_TICKS, TOLERANCE * gap)
            near = bisect_right(gaps, gap + slack) - bisect_left(gaps, gap - slack)
            if near > hits:
                best, hits = gap, near
        return best


def _octave(gap: float) -> int:
    """From 1 on; 0 is kept for who has called once."""
    return min(max(math.frexp(gap)[1], 1), _OCTAVES)
