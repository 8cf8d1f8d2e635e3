"""Combination of several predictions of an agent's next use into one.

The combination is a plain function, so that users can pass their own to ``Engine(combine=...)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from scalesim.distance.estimates import Times

CREDIBLE = 0.5
"""Predictions with at least this confidence are more likely right than not."""
LEAST = 0.05
"""Predictions with less confidence than this, after the discount by the source's trust, are
dropped."""

Combine: TypeAlias = Callable[[Times, npt.NDArray[np.float64]], Times]
"""A function from ``(at, confidence)``, both ``[num_sources, n]``, to next uses ``[n]``. ``at`` is
NaN and ``confidence`` 0 where a source has no prediction; each agent has at least two
predictions."""


def earliest_credible(at: Times, confidence: npt.NDArray[np.float64]) -> Times:
    """The earliest prediction with a confidence of at least ``CREDIBLE``; where no prediction has
    that, the one with the highest confidence.

    ``at``, in ticks of the clock, and ``confidence`` are ``[num_sources, n]``; the result is
    ``[n]``, in ticks. Of two errors, loading an agent too early costs less than loading it late.
    """
    credible = np.where(confidence >= CREDIBLE, at, np.inf).min(axis=0)
    likeliest = at[confidence.argmax(axis=0), np.arange(at.shape[1])]
    earliest: Times = np.where(np.isinf(credible), likeliest, credible)
    return earliest
