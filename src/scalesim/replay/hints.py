"""Hints of workloads: the true time of an agent's next call, exact or blurred."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scalesim.replay.knobs import Knobs
from scalesim.trace.trace import Hint


class WorkloadHints:
    """Hints of one mode for all agents.

    ``exact``: the true time. ``interrupted``: a planned time, before which a share of the calls
    comes. ``probability``: one over the agent's rate, from its last act. ``stale``: the true time,
    told some ticks late. ``inverted``: in reverse order. ``random``: a random time within two mean
    gaps.
    """

    def __init__(self, knobs: Knobs, mean_gap: Callable[[int], float]) -> None:
        self._knobs, self._mean_gap = knobs, mean_gap
        self._rng = np.random.default_rng((knobs.seed, 23))
        self._late: dict[int, list[Hint]] = {}

    def at_first(self, agent: int, first: float) -> float | None:
        return self._blurred(agent, 0, first, first)

    def about(
        self, agent: int, time: int, acts_at: float, planned: float
    ) -> tuple[float | None, float]:
        """The hint of ``agent``, acting at ``acts_at`` in tick ``time``, about its next act, and
        the true time of that act."""
        truth = planned
        if self._knobs.hints == "interrupted" and self._rng.random() < self._knobs.interrupts:
            gap = max(1, int(planned) - time)
            truth = time + 1 + int(self._rng.random() * gap) + planned % 1.0
        return self._blurred(agent, time, planned, truth), truth

    def take_late(self, time: int) -> list[Hint]:
        """The late hints that are due in tick ``time``."""
        return self._late.pop(time, [])

    def _blurred(self, agent: int, time: int, planned: float, truth: float) -> float | None:
        knobs = self._knobs
        if knobs.wrong and self._rng.random() < knobs.wrong:
            return self._anyhow(agent, time)
        if knobs.hints in ("exact", "interrupted"):
            return float(int(planned)) if knobs.whole_ticks else planned
        if knobs.hints == "stale":
            told = time + knobs.stale
            if told < truth:
                self._late.setdefault(told, []).append(Hint(agent, truth, truth))
            return None
        if knobs.hints == "probability":
            return time + max(1.0, self._mean_gap(agent))
        if knobs.hints == "inverted":
            return time + max(1.0, 2.0 * self._mean_gap(agent) + 1.0 - (truth - time))
        if knobs.hints == "random":
            return self._anyhow(agent, time)
        return None

    def _anyhow(self, agent: int, time: int) -> float:
        return time + 1.0 + float(self._rng.random()) * 2.0 * self._mean_gap(agent)
