"""The simulation's clock: time in steps, and how long a step takes in seconds."""

from __future__ import annotations

import math

_WEIGHT = 0.3  # of the newest step in the running estimate


class Clock:
    """``now`` counts steps from 0; it may be a fraction where the simulation keeps virtual time.

    Wall time is passed in, so that the same clock runs under a virtual one.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.seconds_per_step: float | None = None
        self.jitter_s = 0.0  # mean deviation of a step's length from the estimate
        self._last_s: float | None = None

    def advance(self, wall_s: float, *, to: float | None = None) -> None:
        """Move ``to`` a later time, or one step on; ``wall_s`` is the monotonic time of the move.

        Raises ``ValueError`` where ``to`` lies before ``now`` or is not finite.
        """
        target = self.now + 1.0 if to is None else float(to)
        if not math.isfinite(target) or target < self.now:
            raise ValueError(
                f"clock asked to move to {to}, it is at {self.now}; time goes forward only"
            )
        if self._last_s is not None and target > self.now and wall_s >= self._last_s:
            seconds = (wall_s - self._last_s) / (target - self.now)
            known = self.seconds_per_step
            if known is None:
                self.seconds_per_step = seconds
            else:
                self.jitter_s += _WEIGHT * (abs(seconds - known) - self.jitter_s)
                self.seconds_per_step = known + _WEIGHT * (seconds - known)
        self._last_s = wall_s
        self.now = target
