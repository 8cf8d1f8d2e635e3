"""Who will call when: sources, their combination, and the clock.

Sources are public: pass them to ``Engine(..., sources=[...])``. Knows nothing of memory.
"""

from __future__ import annotations

from scalesim.distance.activation import Activation, Predrawn
from scalesim.distance.combine import earliest_credible
from scalesim.distance.estimates import NOTHING, Estimates, Source
from scalesim.distance.graph import Graph, Turns
from scalesim.distance.learned import Learned
from scalesim.distance.plan import Plan
from scalesim.distance.proximity import Proximity
from scalesim.distance.scores import Score

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
