"""The agents that an engine knows: what their requests need to know of each.

Used from any thread. ``lock`` is held while agents are made or forgotten and while the loop's
commands for that are posted, so that the loop hears of an id's agents in the order in which they
lived.
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


@dataclass(eq=False, slots=True)
class AgentEntry:
    """One agent, from its first use until it is forgotten; its id may be another agent's then."""

    id: AgentId
    adapter: str | None = None  # the name of the adapter that its calls use
    is_forgotten: bool = False


class AgentRegistry:
    """Agents by id. Refers to no handle and so to no engine: the engine's thread, which asks
    whether an agent exists, must not keep an engine alive that its user has dropped."""

    def __init__(self) -> None:
        self._entries: dict[AgentId, AgentEntry] = {}
        self.lock = threading.RLock()

    def __contains__(self, agent: object) -> bool:
        return agent in self._entries

    def __iter__(self) -> Iterator[AgentId]:
        return iter(list(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def known(self, agent: AgentId) -> AgentEntry:
        """Raises ``UnknownAgentError``, or ``RequestError`` for what can name no agent."""
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
        """The entry of ``agent``, made if there is none. Under ``lock``."""
        return self._entries.setdefault(agent, AgentEntry(agent))

    def remove(self, agents: Iterable[AgentId]) -> None:
        """All of ``agents``, or ``UnknownAgentError`` and none. Under ``lock``."""
        for entry in [self.known(agent) for agent in agents]:
            entry.is_forgotten = True
            del self._entries[entry.id]


def listed_ids(agents: AgentId | Iterable[AgentId]) -> list[AgentId]:
    """One id or many, each once. Raises ``RequestError`` for what are none."""
    is_one = isinstance(agents, (str, int, np.integer))
    return list(dict.fromkeys([agent_id(agents)] if is_one else agent_ids("agents", agents)))
