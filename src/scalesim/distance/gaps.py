"""How long agents usually pause: the last few gaps of each, and the one that comes back most."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right

from scalesim.distance.scores import MIN_TOLERANCE_STEPS, TOLERANCE

NUM_GAPS = 8
_ENOUGH = 2


class Gaps:
    """Per agent the last eight gaps between its calls, in steps: 44 bytes each."""

    def __init__(self) -> None:
        self._last = array("d")
        self._num = array("i")
        self._gaps = array("f")  # [num_rows, NUM_GAPS], a ring each

    def last(self, row: int) -> float:
        """When it last called, NaN if never."""
        return self._last[row] if row < len(self._last) else math.nan

    def observe(self, row: int, now: float, gap: float) -> None:
        """A call at ``now``, ``gap`` after the one before (NaN for the first)."""
        missing = row + 1 - len(self._last)
        if missing > 0:
            self._last.extend([math.nan] * missing)
            self._num.extend([0] * missing)
            self._gaps.extend([0.0] * (missing * NUM_GAPS))
        self._last[row] = now
        if gap == gap:
            self._gaps[row * NUM_GAPS + self._num[row] % NUM_GAPS] = gap
            self._num[row] += 1

    def usual(self, row: int) -> tuple[float, float] | None:
        """The gap around which most of the last ones lie, and the probability that the next one
        does: the share that did, with one miss added. ``None`` before the third call."""
        num = min(self._num[row], NUM_GAPS)
        if num < _ENOUGH:
            return None
        gaps = sorted(self._gaps[row * NUM_GAPS : row * NUM_GAPS + num])
        best, hits = gaps[0], 0
        for gap in gaps:
            slack = max(MIN_TOLERANCE_STEPS, TOLERANCE * gap)
            near = bisect_right(gaps, gap + slack) - bisect_left(gaps, gap - slack)
            if near > hits:
                best, hits = gap, near
        return best, hits / (num + 1)
