"""How a source's predictions came out, and how far its word is therefore taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from scalesim.core import AgentId

Reason: TypeAlias = Literal["no time", "no confidence", "nobody has this name"]
"""Why a hint says nothing: its time is no finite number, its confidence is no number, or its agent
was not there when its time came."""

WEIGHT = 1.0 / 64.0  # of the newest outcome; the first ones count as if all before had come true
MUTED_BELOW = 0.25
TOLERANCE = 0.25  # of the predicted distance
MIN_TOLERANCE_TICKS = 1.0


@dataclass(slots=True)
class Score:
    """Counts of outcomes. A call is ``on_time`` within a quarter of the distance that was
    predicted, or one tick; ``early`` and ``late`` say how the *call* came; ``never`` is a
    prediction that expired.

    ``trust`` is what came true over what was claimed, at most 1, with the past decaying: a source
    that claims little and is right that often is trusted, as is one that ``judges_itself``.

    ``ignored`` counts hints that said nothing, by reason; ``last_ignored`` is the last of them, as
    it was given. ``unknown`` are names that it speaks of and nobody has, at most eight. ``silent``
    says why nothing is heard of it, where it knows.
    """

    early: int = 0
    on_time: int = 0
    late: int = 0
    never: int = 0
    claimed: float = 1.0  # mean confidence, the past decaying
    deserved: float = 1.0  # share that came true, likewise
    judges_itself: bool = False
    ignored: dict[Reason, int] = field(default_factory=dict)
    last_ignored: str = ""
    unknown: tuple[AgentId, ...] = ()
    silent: str = ""

    @property
    def trust(self) -> float:
        """From 0 to 1; multiplies the source's confidence."""
        if self.judges_itself:
            return 1.0
        return min(1.0, self.deserved / max(self.claimed, 1e-6))

    @property
    def muted(self) -> bool:
        """Whether it is no longer listened to; it goes on being scored and may come back."""
        return self.trust < MUTED_BELOW

    def called(self, made: float, at: float, now: float, confidence: float) -> bool:
        """A call came at ``now``, predicted for ``at`` at time ``made`` with ``confidence``:
        whether it was on time."""
        tolerance = max(MIN_TOLERANCE_TICKS, TOLERANCE * (at - made))
        on_time = abs(now - at) <= tolerance
        if on_time:
            self.on_time += 1
        elif now < at:
            self.early += 1
        else:
            self.late += 1
        self._observe(float(on_time), confidence, WEIGHT)
        return on_time

    def expired(self, num: int, mean_confidence: float) -> None:
        """``num`` predictions, made with ``mean_confidence``, came to nothing."""
        self.never += num
        self._observe(0.0, mean_confidence, 1.0 - (1.0 - WEIGHT) ** num)

    def _observe(self, hit: float, confidence: float, weight: float) -> None:
        self.deserved += weight * (hit - self.deserved)
        self.claimed += weight * (confidence - self.claimed)
