"""Scores: how a source's predictions came out, and the trust that follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from scalesim.core import AgentId
from scalesim.distance.state import PlainState, put, taken

Reason: TypeAlias = Literal["no time", "no confidence", "nobody has this name"]
"""Why a hint is ignored: its time is no finite number, its confidence is no number, or its agent
did not exist when its time came."""

WEIGHT = 1.0 / 64.0  # of the newest outcome in the moving averages, which begin at 1
MUTED_BELOW = 0.25
TOLERANCE = 0.25  # of the predicted distance
MIN_TOLERANCE_TICKS = 1.0


@dataclass(slots=True)
class Score:
    """Counts of the outcomes of a source's predictions.

    A call is ``on_time`` if it comes within a quarter of the predicted distance, or one tick, of
    its predicted time; ``early`` and ``late`` count the other *calls*, and ``never`` the
    predictions that expired.

    ``trust`` is the share of predictions that came true over the mean confidence that was claimed,
    at most 1, both as moving averages: a source that claims little and is right that often is
    trusted fully, as is one that ``judges_itself``.

    ``ignored`` counts ignored hints by reason, and ``last_ignored`` is the last of them as it was
    given. ``unknown`` holds up to eight names that no agent has. ``silent`` is the reason why the
    source says nothing, if it knows one.
    """

    early: int = 0
    on_time: int = 0
    late: int = 0
    never: int = 0
    claimed: float = 1.0  # moving average of the confidence
    deserved: float = 1.0  # moving average of the share that came true
    judges_itself: bool = False
    ignored: dict[Reason, int] = field(default_factory=dict)
    last_ignored: str = ""
    unknown: tuple[AgentId, ...] = ()
    silent: str = ""

    @property
    def trust(self) -> float:
        """The factor for the confidence of the source's predictions, from 0 to 1."""
        if self.judges_itself:
            return 1.0
        return min(1.0, self.deserved / max(self.claimed, 1e-6))

    @property
    def muted(self) -> bool:
        """Whether the source is no longer listened to. A muted source is still scored, and may be
        heard again."""
        return self.trust < MUTED_BELOW

    def state(self) -> PlainState:
        """The counts and averages."""
        counts = taken(self, "early", "on_time", "late", "never", "claimed", "deserved")
        return {**counts, "ignored": dict(self.ignored), "last_ignored": self.last_ignored}

    def restore(self, state: PlainState) -> None:
        """Have the counts and averages that ``state`` gave."""
        put(self, state, "early", "on_time", "late", "never", "claimed", "deserved", "last_ignored")
        self.ignored = dict(state["ignored"])

    def called(self, made: float, at: float, now: float, confidence: float) -> bool:
        """Score a call at ``now`` against a prediction for ``at``, made at ``made`` with
        ``confidence``; times in ticks. Returns whether the call was on time."""
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
        """Score ``num`` expired predictions of ``mean_confidence``."""
        self.never += num
        self._observe(0.0, mean_confidence, 1.0 - (1.0 - WEIGHT) ** num)

    def _observe(self, hit: float, confidence: float, weight: float) -> None:
        self.deserved += weight * (hit - self.deserved)
        self.claimed += weight * (confidence - self.claimed)
