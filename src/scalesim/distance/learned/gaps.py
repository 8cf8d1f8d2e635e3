"""Gap statistics: the last gaps between an agent's calls, and the agent's kind that follows.

A kind is the pair (octave of the usual gap, octave of the last gap). It tells apart agents with a
steady rhythm, agents in the middle of a conversation, and agents just back from a long silence.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right

from scalesim.distance.scores import MIN_TOLERANCE_TICKS, TOLERANCE
from scalesim.distance.state import PlainState, put, taken

NUM_GAPS = 8
_OCTAVES = 12  # gaps beyond this octave count as alike
NUM_KINDS = (_OCTAVES + 1) ** 2


class Gaps:
    """The last eight gaps between the calls of each agent, in ticks; 36 bytes per agent."""

    def __init__(self) -> None:
        self._num = array("i")
        self._gaps = array("f")  # [num_rows, NUM_GAPS], each row a ring

    def observe(self, row: int, gap: float) -> int:
        """Note a call, ``gap`` ticks after the row's last (NaN for the first). Returns the agent's
        kind from now on."""
        missing = row + 1 - len(self._num)
        if missing > 0:
            self._num.extend([0] * missing)
            self._gaps.extend([0.0] * (missing * NUM_GAPS))
        if gap != gap:
            return 0
        self._gaps[row * NUM_GAPS + self._num[row] % NUM_GAPS] = gap
        self._num[row] += 1
        return _octave(self._usual(row)) * (_OCTAVES + 1) + _octave(gap)

    def state(self) -> PlainState:
        """The gaps of all rows."""
        return taken(self, "_num", "_gaps")

    def restore(self, state: PlainState) -> None:
        """Have the gaps that ``state`` gave."""
        put(self, state, "_num", "_gaps")

    def forget(self, row: int) -> None:
        """Clear ``row``: another agent may get it."""
        if row < len(self._num):
            self._num[row] = 0

    def _usual(self, row: int) -> float:
        """The gap with the most other gaps near it."""
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
    """The gap's octave, from 1 on; 0 stands for agents with a single call."""
    return min(max(math.frexp(gap)[1], 1), _OCTAVES)
