"""Traces: who called when, with which text, and what was known of it. Values; no files.

A text is told by content, not by tokens: a piece is a stretch of a stream of tokens that has a
name, so that equal names mean equal tokens, and a trace holds nobody's words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

from scalesim.core import AgentId, Int32s, Int64s

_ORDER = 1e-3  # of a tick: enough to tell the order of its calls, too little to take time

Content: TypeAlias = "str | int"


class TracePiece(NamedTuple):
    """Tokens ``start … start + length`` of the stream called ``content``."""

    content: Content
    length: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class TraceCall:
    """One call. ``expect``: what its agent, after it, says of its next call, as a time of the
    simulation's clock; ``truth``: when that really is, where it is known. Within a tick, an
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
    """Said before the tick's calls: ``agent`` will call at ``expect``; really at ``truth``."""

    agent: AgentId
    expect: float | None
    truth: float | None = None


@dataclass(slots=True)
class TraceTick:
    """What happens in one tick of the simulation: hints, then calls, in order."""

    time: float
    hints: list[Hint] = field(default_factory=list)
    calls: list[TraceCall] = field(default_factory=list)


def common_length(first: Int32s | Int64s, second: Int32s | Int64s) -> int:
    """How many leading tokens two texts share."""
    count = min(len(first), len(second))
    differ = first[:count] != second[:count]
    return int(differ.argmax()) if differ.any() else count


def with_truth(ticks: Iterable[TraceTick]) -> list[TraceTick]:
    """``ticks`` with every ``truth`` set from what follows: the next tick in which the agent
    calls, and its place among that tick's calls."""
    found: list[TraceTick] = []
    ahead: dict[AgentId | None, float] = {}
    for tick in reversed(list(ticks)):
        calls = [replace(call, truth=ahead.get(call.agent)) for call in tick.calls]
        for place, call in reversed(list(enumerate(calls))):
            ahead[call.agent] = tick.time + _ORDER * place / len(calls)
        hints = [replace(hint, truth=ahead.get(hint.agent)) for hint in tick.hints]
        found.append(TraceTick(tick.time, hints, calls))
    return found[::-1]
