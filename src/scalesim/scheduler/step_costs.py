"""Step costs: how many prompt tokens a step can compute while it reads for its decodes.

A step of decodes reads the weights and the KV of its rows, and leaves the arithmetic idle; a
prefill keeps the arithmetic busy, and reads little. In one step of a GPU the two run side by side,
and the step takes as long as the longer one. So prefill is spread over the steps that decode, in
each as many tokens as take no time of their own: more would delay the decodes, and leave none for
later steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

_NEW = 0.05  # weight of the newest step
_ENOUGH = 0.5  # least share of the shorter part that must be saved


class StepCosts(ABC):
    """What the steps of a device cost."""

    @abstractmethod
    def balanced_tokens(self, num_decodes: int, context_tokens: int, position: int) -> float:
        """How many prompt tokens, from ``position`` on, a step can compute in the time in which it
        reads the weights and the ``context_tokens`` of ``num_decodes`` sequences; infinite if the
        two do not run side by side, or not known."""

    def took(self, num_decodes: int, prefill_tokens: int, seconds: float) -> None:  # noqa: B027
        """Note how long a step took; for costs that are measured."""


class MeasuredCosts(StepCosts):
    """Costs learned from the steps of an engine.

    Steps without prefill say what decodes take, as a line over their number; steps without decodes
    what a prompt token takes. Steps with both say whether the two overlap: where the time is the
    sum of the two, as on a CPU, nothing is gained by small chunks.
    """

    def __init__(self) -> None:
        self.overlap = 0.0  # share of the shorter part that steps with both save
        self._decodes, self._prefill = _Fit(), _Fit()

    def balanced_tokens(self, num_decodes: int, context_tokens: int, position: int) -> float:
        if self.overlap < _ENOUGH:
            return math.inf
        return self._decodes.at(num_decodes) / self._prefill.slope_from_0

    def took(self, num_decodes: int, prefill_tokens: int, seconds: float) -> None:
        if not prefill_tokens:
            self._decodes.add(num_decodes, seconds)
        elif not num_decodes:
            self._prefill.add(prefill_tokens, seconds)
        elif self._decodes.is_known and self._prefill.is_known:
            decode_s = self._decodes.at(num_decodes)
            prefill_s = prefill_tokens * self._prefill.slope_from_0
            saved = (decode_s + prefill_s - seconds) / min(decode_s, prefill_s)
            self.overlap += _NEW * (min(1.0, max(0.0, saved)) - self.overlap)


class _Fit:
    """A least squares fit of y over x > 0, in which new points weigh more."""

    def __init__(self) -> None:
        self._x = self._y = self._xx = self._xy = 0.0  # running means

    @property
    def is_known(self) -> bool:
        return self._y > 0.0

    @property
    def slope_from_0(self) -> float:
        """The slope of the line through 0: large x count most."""
        return self._xy / self._xx

    def add(self, x: float, y: float) -> None:
        weight = _NEW if self.is_known else 1.0
        self._x += weight * (x - self._x)
        self._y += weight * (y - self._y)
        self._xx += weight * (x * x - self._xx)
        self._xy += weight * (x * y - self._xy)

    def at(self, x: float) -> float:
        """The fit at ``x``; the mean where the points do not differ, and never below 0."""
        spread = self._xx - self._x * self._x
        slope = (self._xy - self._x * self._y) / spread if spread > 1e-6 * self._xx else 0.0
        return max(1e-9, self._y + slope * (x - self._x))
