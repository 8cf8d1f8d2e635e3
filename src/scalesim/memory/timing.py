"""Memory's time: the simulation's clock, the newest step, and how long things took so far.

A reset forgets pages, leases and agents; none of those says anything of time, so a manager makes
one ``Timing`` for its whole life.
"""

from __future__ import annotations

from dataclasses import dataclass

_OF_TICKS = 0.5  # weight of the newest tick in whether ticks wait for all calls
_NEW = 0.1  # weight of the newest iteration in the length of one
_LASTING = 0.05  # the same, in what must not jump: the usual length, and the cost of prefill
_PAUSE_S = 1.0  # a longer gap between two iterations is a pause, not an iteration


@dataclass(frozen=True, slots=True)
class Pace:
    """How the simulation's clock runs: seconds a tick (``None`` = not known yet), how much that
    varies, and the wall time of the last tick."""

    seconds_per_tick: float | None = None
    jitter_s: float = 0.0
    last_tick_s: float = 0.0


class Timing:
    """``now`` is the simulation's time in ticks; ``last_launched`` the newest step of the compute
    queue. ``iteration_s``: how long the engine loop's newest iterations took; ``usual_s``: the same
    over a longer time. ``waits_for_all``: how surely the clock moves only when all calls have
    ended, 0 to 1."""

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
        """The clock moved; ``idle``: no request was open."""
        self.now, self.pace = now, pace
        self.waits_for_all += _OF_TICKS * (idle - self.waits_for_all)

    def launched(self, step: int, prefill_tokens: int) -> None:
        """``step`` is the newest, and prefills so many tokens."""
        self.last_launched = step
        self._launched += prefill_tokens

    def begin_iteration(self, wall_s: float) -> None:
        """The iteration before is over, and with it the step that was launched in the one before
        that. A token's share is a least squares fit through 0: a full step tells what many tokens
        take, and a few beside a decode take no time of their own."""
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
        """To compute ``num_tokens``, once it is their turn; infinite until a prefill was seen."""
        if not self._tokens_tokens:
            return float("inf")
        return num_tokens * self._tokens_s / self._tokens_tokens
