"""A source for agents that follow plans: an action lasts a number of ticks, then the agent
calls."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence

from scalesim.checks import agent_id, number, shown
from scalesim.core import AgentId
from scalesim.distance.estimates import DatedSource
from scalesim.distance.state import PlainState
from scalesim.errors import RequestError


class Plan(DatedSource):
    """Predictions from the durations of planned actions.

    ``confidence`` is the share of actions that end as planned. A call before an action's end is an
    interruption: the plan stands. A call at an action's end, or later, begins the plan's next
    action. Raises ``ConfigError`` for wrong arguments.
    """

    def __init__(self, *, name: str = "plan", confidence: float = 0.9) -> None:
        super().__init__(name, confidence)
        self._ends: dict[AgentId, float] = {}
        self._next: dict[AgentId, deque[float]] = {}

    def follow(self, agent: AgentId, *durations: float) -> None:
        """Have ``agent`` begin actions of these durations, in ticks, now and one after another; it
        calls at the end of each. Without a duration, ``agent`` has no plan any more. Raises
        ``RequestError`` for a duration that is no number, or negative."""
        agent = agent_id(agent)
        planned = [_duration(agent, duration) for duration in durations]
        self._tell(lambda now: self._begin(agent, planned, now))

    def called(self, agent: AgentId, now: float) -> None:
        end = self._ends.get(agent)
        if end is not None and end < math.floor(now) + 1.0:
            self._begin(agent, self._next.pop(agent, ()), now)

    def forget(self, agents: Sequence[AgentId]) -> None:
        super().forget(agents)
        for agent in agents:
            self._ends.pop(agent, None)
            self._next.pop(agent, None)

    def state(self) -> PlainState:
        """The plans."""
        return {
            "ends": [[agent, end] for agent, end in self._ends.items()],
            "next": [[agent, list(planned)] for agent, planned in self._next.items()],
            "changed": [[agent, end] for agent, end in self._changed.items()],
        }

    def restore(self, state: PlainState, now: float) -> None:
        """Have the plans that ``state`` gave."""
        self._ends = dict(state["ends"])
        self._next = {agent: deque(planned) for agent, planned in state["next"]}
        self._changed = dict(state["changed"])

    def _begin(self, agent: AgentId, durations: Iterable[float], now: float) -> None:
        planned = deque(durations)
        self._next.pop(agent, None)
        if not planned:
            self._ends.pop(agent, None)
            self._changed[agent] = math.nan
            return
        self._ends[agent] = self._changed[agent] = now + planned.popleft()
        if planned:
            self._next[agent] = planned


def _duration(agent: AgentId, value: float) -> float:
    try:
        return number("duration", value, 0.0)
    except RequestError as error:
        raise RequestError(f"agent {shown(agent)}: {error}: ticks, which must end") from None
