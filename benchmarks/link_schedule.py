"""What the link could carry at best: a schedule for models in turn that is made in hindsight.

At every moment the link loads what is used soonest, as far as it is not there, in the place of what
is used last, single pages at a time (Belady's order, 1966); a model that computes stays whole.
Nothing is planned, polled or moved in larger pieces, so an engine cannot be expected to do better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Turn(NamedTuple):
    """A time in which one ``model`` computes for ``seconds``. It needs ``pages``: its weights, and
    the KV that its calls read."""

    model: int
    pages: int
    seconds: float


def scheduled_s(turns: Sequence[Turn], capacity: int, load_s: float) -> float:
    """The seconds that the schedule takes for ``turns``, one behind the other, in ``capacity``
    pages, of which the link brings one in ``load_s``. What is used soonest is there when it
    begins."""
    there = dict.fromkeys((turn.model for turn in turns), 0.0)
    _load(there, turns, capacity, capacity)
    total_s = 0.0
    for index, turn in enumerate(turns):
        missing = turn.pages - there[turn.model]
        if missing > 0:
            _load(there, turns[index:], capacity, missing)
        total_s += max(0.0, missing) * load_s + turn.seconds
        there[turn.model] = turn.pages
        _load(there, turns[index + 1 :], capacity, turn.seconds / load_s, turn.model)
    return total_s


def _load(
    there: dict[int, float], turns: Sequence[Turn], capacity: float, count: float,
    computing: int | None = None,
) -> None:  # fmt: skip
    """Bring up to ``count`` pages of what ``turns`` need to the pages ``there`` are of each
    model."""
    needed: dict[int, float] = {}
    for turn in turns:
        needed.setdefault(turn.model, turn.pages)
    soonest = [*needed, *(model for model in there if model not in needed)]
    for place, model in enumerate(needed):
        wanted = min(count, needed[model] - there[model])
        for other in reversed(soonest[place + 1 :]):
            room = capacity - sum(there.values())
            if room < wanted and other != computing:
                there[other] -= min(there[other], wanted - room)
        brought = max(0.0, min(wanted, capacity - sum(there.values())))
        there[model], count = there[model] + brought, count - brought
        if math.isclose(count, 0.0, abs_tol=1e-6):
            return
