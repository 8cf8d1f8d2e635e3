"""The agents of an engine, with what their requests need.

Used from any thread. ``lock`` is held while agents are made or forgotten and while the loop's
commands for that are posted. So the loop is told of the agents with one id in the order in which
they lived.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from scalesim.checks import agent_id, agent_ids, shown
from scalesim.core import AgentId
from scalesim.distance.hints import nearest
from scalesim.errors import UnknownAgentError


class ForkedId(str):
    """The id by which memory knows ``agent`` of the forked world numbered ``world``.

    It begins with half a surrogate pair, which no id of a user's has, and so is equal to none.
    """

    __slots__ = ("agent", "world")
    agent: AgentId
    world: int

    def __new__(cls, agent: AgentId, world: int) -> ForkedId:
        made = super().__new__(cls, f"\ud800{world}:{agent!r}")
        made.agent, made.world = agent, world
        return made

    def __repr__(self) -> str:
        return f"{self.agent!r} of world {self.world}"


@dataclass(eq=False, slots=True)
class AgentEntry:
    """An agent, from its first use until it is forgotten. After that, another agent may have its
    id. Memory knows the agent by ``key``: its id, or in a forked world a ``ForkedId``."""

    id: AgentId
    key: AgentId
    adapter: str | None = None  # the name of the adapter that its calls use
    model: str | None = None  # the name of the model that its calls run on; None: the engine's own
    is_forgotten: bool = False

    @property
    def world(self) -> int:
        """The number of its world; 0 for the engine's own."""
        return self.key.world if isinstance(self.key, ForkedId) else 0


class AgentRegistry:
    """Agents by id.

    The registry refers to no ``Agent`` and so to no engine: the engine's thread uses it, and must
    not keep an engine alive that its user has dropped. ``world`` is the number of the forked world
    whose agents these are, 0 for the engine's own world.
    """

    def __init__(self, world: int = 0) -> None:
        self.world = world
        self._entries: dict[AgentId, AgentEntry] = {}
        self.lock = threading.RLock()

    def __contains__(self, agent: object) -> bool:
        return agent in self._entries

    def __iter__(self) -> Iterator[AgentId]:
        return iter(list(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def known(self, agent: AgentId) -> AgentEntry:
        """The entry of ``agent``. Raises ``UnknownAgentError``, or ``RequestError`` for a value
        that is no agent id."""
        found = self._entries.get(agent_id(agent))
        if found is None:
            name, near = shown(agent), nearest(agent, self)
            meant = "" if near is None else f" (is {near!r} meant?)"
            raise UnknownAgentError(
                f"agent {name} is unknown to this engine{meant}; make it with engine.agent({name})"
            )
        return found

    def all_known(self, agents: Iterable[AgentId]) -> list[AgentId]:
        """The ids of ``agents``, in order. Raises what ``known`` raises."""
        entries = self._entries
        return [  # a plain text that is there needs no further look: hints come by the thousand
            agent if type(agent) is str and agent in entries else self.known(agent).id
            for agent in agents
        ]

    def add(self, agent: AgentId) -> AgentEntry:
        """The entry of ``agent``, made if there is none. The caller holds ``lock``."""
        entry = self._entries.get(agent)
        if entry is None:
            key = ForkedId(agent, self.world) if self.world else agent
            entry = self._entries[agent] = AgentEntry(agent, key)
        return entry

    def entries(self) -> list[AgentEntry]:
        """All agents."""
        return list(self._entries.values())

    def remove(self, agents: Iterable[AgentId]) -> list[AgentId]:
        """Remove all of ``agents``, or none if one is unknown (``UnknownAgentError``). Returns by
        which ids memory knows them. The caller holds ``lock``."""
        entries = [self.known(agent) for agent in agents]
        for entry in entries:
            entry.is_forgotten = True
            del self._entries[entry.id]
        return [entry.key for entry in entries]


def listed_ids(agents: AgentId | Iterable[AgentId]) -> list[AgentId]:
    """A single id or several, as a list without repeats. Raises ``RequestError`` for a value that
    is no agent id."""
    is_one = isinstance(agents, (str, int, np.integer))
    return list(dict.fromkeys([agent_id(agents)] if is_one else agent_ids("agents", agents)))
