"""Worlds: which world an agent of memory's belongs to, and who is told of its calls.

Memory and the scheduler know agents by one id each. An agent of the engine's own world has the id
that its user gave; one of a forked world has a ``ForkedId``, made of that world's number and the
user's id. The loop tells calls to ``Worlds``, which tells the advice of the agent's world, by the
user's id.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from scalesim.core import AgentId
from scalesim.distance.distances import Change
from scalesim.engine.advice import Advice
from scalesim.memory.manager import MemoryManager
from scalesim.requests.agent_registry import ForkedId


class Worlds:
    """The advice of every world of an engine, ``own`` being the engine's. On the loop's thread, but
    for ``next_number``."""

    def __init__(self, own: Advice) -> None:
        self._own = own
        self._forked: dict[int, Advice] = {}
        self._numbers = itertools.count(1)

    def next_number(self) -> int:
        """A number that no world has had."""
        return next(self._numbers)

    def add(self, number: int, advice: Advice) -> None:
        """Have a forked world told of its agents' calls."""
        self._forked[number] = advice

    def remove(self, number: int) -> None:
        """The forked world is closed; its agents have been forgotten."""
        self._forked.pop(number, None)

    # -- for the loop -------------------------------------------------------------------------

    def called(self, agent: AgentId, more_calls: int | None) -> None:
        """See ``Advice.called``."""
        advice, id = self._of(agent)
        advice.called(id, more_calls)

    def ended(self, agent: AgentId) -> None:
        """See ``Advice.ended``."""
        advice, id = self._of(agent)
        advice.ended(id)

    def calls_to_come(self, agent: AgentId | None, more_calls: int | None) -> float:
        """See ``Advice.calls_to_come``."""
        advice, id = (self._own, agent) if agent is None else self._of(agent)
        return advice.calls_to_come(id, more_calls)

    def forget(self, agents: Sequence[AgentId]) -> None:
        """See ``Advice.forget``: of ``agents`` in any worlds."""
        by_advice: dict[Advice, list[AgentId]] = {}
        for agent in agents:
            advice, id = self._of(agent)
            by_advice.setdefault(advice, []).append(id)
        for advice, ids in by_advice.items():
            advice.forget(ids)

    def expire(self, now_s: float) -> None:
        """See ``Advice.expire``."""
        self._own.expire(now_s)
        for advice in self._forked.values():
            advice.expire(now_s)

    def _of(self, agent: AgentId) -> tuple[Advice, AgentId]:
        if isinstance(agent, ForkedId) and agent.world in self._forked:
            return self._forked[agent.world], agent.agent
        return self._own, agent


class ForkedMemory:
    """Memory as the advice of forked world ``number`` knows it: by users' ids. Of the clocks of all
    worlds, memory has the one that is farthest ahead (``Timing.tick``)."""

    def __init__(self, memory: MemoryManager, number: int) -> None:
        self._memory, self._number = memory, number

    def hint(self, next_uses: Sequence[Change]) -> None:
        """See ``MemoryManager.hint``."""
        number = self._number
        self._memory.hint([(ForkedId(agent, number), time) for agent, time in next_uses])

    def called(self, agent: AgentId, expected: float | None) -> None:
        """See ``MemoryManager.called``."""
        self._memory.called(ForkedId(agent, self._number), expected)

    def tick(self, now: float, tick_s: float | None) -> None:
        """See ``MemoryManager.tick``."""
        self._memory.tick(now, tick_s)
