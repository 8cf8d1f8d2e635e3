"""Invocation distance: predictions of agents' next calls, their combination and the clock.

Sources are public: pass them to ``Engine(..., sources=[...])``. This package imports nothing of
memory.
"""

from __future__ import annotations

from scalesim.distance.combine import earliest_credible
from scalesim.distance.estimates import NOTHING, Estimates, Source
from scalesim.distance.learned.learned import Learned
from scalesim.distance.scores import Score
from scalesim.distance.sources.activation import Activation, Predrawn
from scalesim.distance.sources.graph import Graph, Turns
from scalesim.distance.sources.plan import Plan
from scalesim.distance.sources.proximity import Proximity

__all__ = [
    "NOTHING",
    "Activation",
    "Estimates",
    "Graph",
    "Learned",
    "Plan",
    "Predrawn",
    "Proximity",
    "Score",
    "Source",
    "Turns",
    "earliest_credible",
]
