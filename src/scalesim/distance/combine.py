"""How several predictions of an agent's next use become one. A function; users may bring theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from scalesim.distance.estimates import Times

CREDIBLE = 0.5
LEAST = 0.05
"""Less than this, after the discount for what a source deserves, counts as not said."""

Combine: TypeAlias = Callable[[Times, npt.NDArray[np.float64]], Times]
"""``(at, confidence)``, both ``[num_sources, n]``, to next uses ``[n]``. ``at`` is NaN and
``confidence`` 0 where a source says nothing; every agent has two sources that speak, or more."""


def earliest_credible(at: Times, confidence: npt.NDArray[np.float64]) -> Times:
    """The earliest of the predictions that are more likely right than not; where there is none, the
    likeliest. ``at``, in ticks of the clock, and ``confidence`` are ``[num_sources, n]``."""
    credible = np.where(confidence >= CREDIBLE, at, np.inf).min(axis=0)
    likeliest = at[confidence.argmax(axis=0), np.arange(at.shape[1])]
    earliest: Times = np.where(np.isinf(credible), likeliest, credible)
    return earliest
