"""The simulation's clock: time in ticks, and how long a tick takes in seconds."""

from __future__ import annotations

import math

MAX_TIME = 2.0**52
"""Ticks. Above this, adding one tick could be lost in rounding."""
_WEIGHT = 0.3  # of the newest tick, in the moving averages


class Clock:
    """Time of the simulation: ``now`` counts ticks from 0.

    ``now`` never decreases, and may be fractional where the simulation keeps virtual time. Callers
    pass wall time in, so that tests and replays can use a virtual one.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.seconds_per_tick: float | None = None
        self._last_s: float | None = None

    def restore(self, now: float, seconds_per_tick: float | None) -> None:
        """Begin at ``now``. How long ticks take is known from before; the first is not timed."""
        self.now, self.seconds_per_tick, self._last_s = now, seconds_per_tick, None

    def tick(self, wall_s: float, n: float = 1.0, *, to: float | None = None) -> None:
        """Move forward by ``n`` ticks, or to the time ``to`` if that is given.

        ``wall_s`` is the monotonic wall time of the move, in seconds. Raises ``ValueError`` if
        ``to`` lies before ``now`` or is not finite.
        """
        target = min(self.now + n, MAX_TIME) if to is None else float(to)
        if not math.isfinite(target) or target < self.now:
            raise ValueError(
                f"clock asked to move to {to}, it is at {self.now}; time goes forward only"
            )
        if self._last_s is not None and target > self.now and wall_s >= self._last_s:
            seconds = (wall_s - self._last_s) / (target - self.now)
            known = self.seconds_per_tick
            if known is None:
                self.seconds_per_tick = seconds
            else:
                self.seconds_per_tick = known + _WEIGHT * (seconds - known)
        self._last_s = wall_s
        self.now = target
