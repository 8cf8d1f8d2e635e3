"""Traces: who called when, with which text, and what was known of it. Values; no files.

A text is told by content, not by tokens: a piece is a stretch of a stream of tokens that has a
name, so that equal names mean equal tokens, and a trace holds nobody's words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

from scalesim.core import AgentId

_ORDER = 1e-3  # of a step: enough to tell the order of its calls, too little to take time

Content: TypeAlias = "str | int"


class TracePiece(NamedTuple):
    """Tokens ``start … start + length`` of the stream called ``content``."""

    content: Content
    length: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """One call. ``expect``: what its agent, after it, says of its next call, as a time of the
    simulation's clock; ``truth``: when that really is, where it is known. Within a step, an
    agent's calls of one ``round`` run together, those of the next round after them."""

    agent: AgentId | None
    prompt: tuple[TracePiece, ...]
    output: TracePiece
    round: int = 0
    adapter: str | None = None
    expect: float | None = None
    truth: float | None = None

    @property
    def prompt_len(self) -> int:
        return sum(piece.length for piece in self.prompt)


@dataclass(frozen=True, slots=True)
class Hint:
    """Said before the step's calls: ``agent`` will call at ``expect``; really at ``truth``."""

    agent: AgentId
    expect: float | None
    truth: float | None = None


@dataclass(slots=True)
class TraceStep:
    """What happens in one step of the simulation: hints, then calls, in order."""

    time: float
    hints: list[Hint] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)


def with_truth(steps: Iterable[TraceStep]) -> list[TraceStep]:
    """``steps`` with every ``truth`` set from what follows: the next step in which the agent
    calls, and its place among that step's calls."""
    found: list[TraceStep] = []
    ahead: dict[AgentId | None, float] = {}
    for step in reversed(list(steps)):
        turns = [replace(turn, truth=ahead.get(turn.agent)) for turn in step.turns]
        for place, turn in reversed(list(enumerate(turns))):
            ahead[turn.agent] = step.time + _ORDER * place / len(turns)
        hints = [replace(hint, truth=ahead.get(hint.agent)) for hint in step.hints]
        found.append(TraceStep(step.time, hints, turns))
    return found[::-1]
