"""Timing: the simulation's clock, the newest step, and measured times of iterations and prefills.

A manager makes one ``Timing`` for its whole life: a reset forgets pages, leases and agents, and
none of them says anything about time.
"""

from __future__ import annotations

from dataclasses import dataclass

_OF_TICKS = 0.5  # weight of the newest tick in ``waits_for_all``
_NEW = 0.1  # weight of the newest iteration in ``iteration_s``
_LASTING = 0.05  # the same in ``usual_s`` and the cost of prefill, which must not jump
_PAUSE_S = 1.0  # a longer gap between two iterations is a pause, not an iteration


@dataclass(frozen=True, slots=True)
class Pace:
    """How the simulation's clock runs: wall seconds a tick (``None`` = unknown), their variation in
    seconds, and the wall time of the last tick."""

    seconds_per_tick: float | None = None
    jitter_s: float = 0.0
    last_tick_s: float = 0.0


class Timing:
    """The clock and the measured times.

    ``now``: the simulation's time in ticks. ``last_launched``: the newest step of the compute
    queue, -1 for none. ``iteration_s``: seconds of the engine loop's newest iterations, as a moving
    average; ``usual_s``: the same over a longer time. ``waits_for_all``: the probability, 0 to 1,
    that the clock moves only when all calls have ended.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.pace = Pace()
        self.waits_for_all = 0.0
        self.last_launched = -1
        self.iteration_s = self.usual_s = 0.0
        self._iteration_began_s: float | None = None
        self._launched = self._running = 0  # prefill tokens, of this iteration and the one before
        self._tokens_s = self._tokens_tokens = 0.0  # running means of tokens × seconds, tokens²

    def tick(self, now: float, pace: Pace, *, idle: bool) -> None:
        """The clock moved to ``now``. ``idle``: no request was open."""
        self.now, self.pace = now, pace
        self.waits_for_all += _OF_TICKS * (idle - self.waits_for_all)

    def launched(self, step: int, prefill_tokens: int) -> None:
        """``step`` was launched and is the newest; it prefills ``prefill_tokens`` tokens."""
        self.last_launched = step
        self._launched += prefill_tokens

    def begin_iteration(self, wall_s: float) -> None:
        """An iteration begins at ``wall_s`` seconds: measure the one before, in which the step
        launched one iteration earlier has ended. The seconds a prefill token takes are a least
        squares fit through 0, so that full steps count most: a few prefill tokens beside decodes
        take no time of their own."""
        began_s, self._iteration_began_s = self._iteration_began_s, wall_s
        tokens, self._running, self._launched = self._running, self._launched, 0
        if began_s is None or not 0.0 <= wall_s - began_s < _PAUSE_S:
            return
        took_s = wall_s - began_s
        self.iteration_s += _NEW * (took_s - self.iteration_s)
        self.usual_s += _LASTING * (took_s - self.usual_s)
        if tokens:
            self._tokens_s += _LASTING * (tokens * took_s - self._tokens_s)
            self._tokens_tokens += _LASTING * (tokens * tokens - self._tokens_tokens)

    def prefill_s(self, num_tokens: int) -> float:
        """Seconds that the prefill of ``num_tokens`` takes; infinite until a prefill was
        measured."""
        if not self._tokens_tokens:
            return float("inf")
        return num_tokens * self._tokens_s / self._tokens_tokens
