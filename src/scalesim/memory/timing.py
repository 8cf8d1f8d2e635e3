"""Timing: the simulation's clock, the newest step, and measured times of iterations and prefills.

A manager makes one ``Timing`` for its whole life: a reset forgets pages, leases and agents, and
none of them says anything about time.
"""

from __future__ import annotations

_NEW = 0.1  # weight of the newest iteration in ``iteration_s``, and of the newest move
_LASTING = 0.05  # the same in ``usual_s`` and the cost of prefill, which must not jump
_PAUSE_S = 1.0  # a longer gap between two iterations is a pause, not an iteration


class Timing:
    """The clock and the measured times.

    ``now``: the simulation's time in ticks. ``move``: by how many ticks the clock moves, about:
    uses that are nearer to one another come at the same move. ``tick_s``: wall seconds a tick,
    ``None`` = unknown. ``last_launched``: the newest step of the compute queue, -1 for none.
    ``iteration_s``: seconds of the engine loop's newest iterations, as a moving average;
    ``usual_s``: the same over a longer time.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.move = 1.0
        self.tick_s: float | None = None
        self.last_launched = -1
        self.iteration_s = self.usual_s = 0.0
        self._iteration_began_s: float | None = None
        self._launched = self._running = 0  # prefill tokens, of this iteration and the one before
        self._tokens_s = self._tokens_tokens = 0.0  # running means of tokens × seconds, tokens²

    def tick(self, now: float, tick_s: float | None) -> None:
        """The clock moved to ``now``. A long move counts little: it may be a pause. Of several
        worlds' clocks, the one that is farthest ahead counts."""
        if now < self.now:
            return
        moved = now - self.now
        if moved > 0.0:
            self.move = min(moved, self.move + _NEW * (moved - self.move))
        self.now, self.tick_s = now, tick_s

    def restore(self, now: float, tick_s: float | None, move: float) -> None:
        """Begin at ``now``, as a clock that moves by about ``move`` ticks."""
        self.now, self.tick_s, self.move = now, tick_s, move

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
