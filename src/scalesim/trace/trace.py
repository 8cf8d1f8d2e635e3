"""The values of a trace: calls with their times and texts, and the hints about them.

A text is identified by contents, not by tokens. A content is a named stream of tokens, a piece a
range of one; equal names mean equal tokens. So a trace shows which texts are shared, and holds no
text itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

from scalesim.core import AgentId, Int32s, Int64s

_ORDER = 1e-3  # ticks over which the calls of a tick are spread, to tell their order

Content: TypeAlias = "str | int"


class TracePiece(NamedTuple):
    """The tokens ``start … start + length`` of the stream named ``content``."""

    content: Content
    length: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class TraceCall:
    """One call.

    ``expect`` is the agent's hint after the call: the time of its next call, in ticks of the
    simulation's clock. ``truth`` is when that call really comes, if known. Within a tick, an
    agent's calls of one ``round`` run concurrently, and those of the next round after them.
    ``more_calls`` is how many of the agent's calls were said to follow in the same tick.
    """

    agent: AgentId | None
    prompt: tuple[TracePiece, ...]
    output: TracePiece
    round: int = 0
    adapter: str | None = None
    expect: float | None = None
    truth: float | None = None
    more_calls: int | None = None

    @property
    def prompt_len(self) -> int:
        return sum(piece.length for piece in self.prompt)


@dataclass(frozen=True, slots=True)
class Hint:
    """A hint before the tick's calls: ``agent`` is expected at ``expect``, in ticks (``None``: the
    last hint is taken back). ``truth`` is when the call really comes, if known."""

    agent: AgentId
    expect: float | None
    truth: float | None = None


@dataclass(slots=True)
class TraceTick:
    """One tick of the simulation: first its hints, then its calls, in order."""

    time: float
    hints: list[Hint] = field(default_factory=list)
    calls: list[TraceCall] = field(default_factory=list)


def common_length(first: Int32s | Int64s, second: Int32s | Int64s) -> int:
    """The length of the longest common prefix of two token arrays, ``[n]`` and ``[m]``."""
    count = min(len(first), len(second))
    differ = first[:count] != second[:count]
    return int(differ.argmax()) if differ.any() else count


def with_truth(ticks: Iterable[TraceTick]) -> list[TraceTick]:
    """``ticks`` with every ``truth`` set: the time of the agent's next call in a later tick, plus a
    small amount for that call's place in its tick."""
    found: list[TraceTick] = []
    ahead: dict[AgentId | None, float] = {}
    for tick in reversed(list(ticks)):
        calls = [replace(call, truth=ahead.get(call.agent)) for call in tick.calls]
        for place, call in reversed(list(enumerate(calls))):
            ahead[call.agent] = tick.time + _ORDER * place / len(calls)
        hints = [replace(hint, truth=ahead.get(hint.agent)) for hint in tick.hints]
        found.append(TraceTick(tick.time, hints, calls))
    return found[::-1]


def with_bursts(ticks: Iterable[TraceTick]) -> Iterator[TraceTick]:
    """``ticks`` with every ``more_calls`` set: the rounds of the agent that follow in the tick."""
    for tick in ticks:
        rounds: dict[AgentId, set[int]] = {}
        calls: list[TraceCall] = []
        for call in reversed(tick.calls):
            if call.agent is not None:
                behind = rounds.setdefault(call.agent, set())
                behind.add(call.round)
                call = replace(call, more_calls=len(behind) - 1)
            calls.append(call)
        yield TraceTick(tick.time, tick.hints, calls[::-1])
