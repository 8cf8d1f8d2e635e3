"""Agents as row numbers, so that what is known of them can lie in arrays. A row is given again once
its agent was removed: whoever keeps arrays by it clears them then."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from scalesim.checks import agent_ids, reading, shown
from scalesim.core import AgentId, Int64s
from scalesim.errors import ConfigError, RequestError


class Roster:
    """Gives each agent a free row, on first sight. ``len`` counts rows, free ones included."""

    def __init__(self) -> None:
        self.ids: list[AgentId] = []
        self._rows: dict[AgentId, int] = {}
        self._free: list[int] = []

    @staticmethod
    def of(agents: Sequence[AgentId]) -> Roster:
        """Of ``agents``, in this order. Raises ``ConfigError`` where one is named twice."""
        agents, roster = agent_ids("agents", agents, ConfigError), Roster()
        roster.rows(agents)
        if twice := len(agents) - len(roster):
            raise ConfigError(f"{twice} of {len(agents)} agents are named twice")
        return roster

    def __len__(self) -> int:
        return len(self.ids)

    def get(self, agent: AgentId) -> int | None:
        return self._rows.get(agent)

    def row(self, agent: AgentId) -> int:
        row = self._rows.get(agent)
        if row is None:
            if self._free:
                row = self._free.pop()
                self.ids[row] = agent
            else:
                row = len(self.ids)
                self.ids.append(agent)
            self._rows[agent] = row
        return row

    def remove(self, agent: AgentId) -> int | None:
        """Forget ``agent``; its row, which is free from now on, or ``None`` if it has none."""
        row = self._rows.pop(agent, None)
        if row is not None:
            self.ids[row] = ""
            self._free.append(row)
        return row

    def rows(self, agents: Sequence[AgentId]) -> Int64s:
        found = np.fromiter(map(self._rows.get, agents, repeat(-1)), np.int64, len(agents))
        if found.min(initial=0) < 0:
            found = np.fromiter(map(self.row, agents), np.int64, len(agents))
        return found

    def known(self, agents: Iterable[AgentId]) -> Int64s:
        """Their rows. Raises ``RequestError`` for an agent that has none."""
        with reading("agents"):
            agents = list(agents)
            rows = list(map(self._rows.get, agents))
        if None in rows:
            missing = shown(agents[rows.index(None)])
            raise RequestError(f"agent {missing} is not one of this source; give all at once")
        return np.array(rows, np.int64)

    def names(self, rows: Iterable[int]) -> list[AgentId]:
        return list(map(self.ids.__getitem__, rows))


class Columns:
    """Arrays of one length, a row per agent, that grow by an eighth at a time. Fields are read as
    attributes; hold none of them across a ``grow``.

    ``fields`` maps a name to (dtype, value of a new row, shape of one entry).
    """

    def __init__(self, **fields: tuple[Any, Any, tuple[int, ...]]) -> None:
        self._fields = fields
        self.num_rows = 0
        for name in fields:
            setattr(self, name, self._fresh(name, 0))

    def __getattr__(self, name: str) -> npt.NDArray[Any]:
        raise AttributeError(name)  # for the type checker: fields are set in __init__

    def grow(self, num_rows: int) -> None:
        """Have at least ``num_rows``."""
        if num_rows <= self.num_rows:
            return
        capacity = max(16, num_rows + num_rows // 8)
        for name in self._fields:
            more = self._fresh(name, capacity - self.num_rows)
            setattr(self, name, np.concatenate([getattr(self, name), more]))
        self.num_rows = capacity

    def clear(self, row: int) -> None:
        """Have ``row`` as it is when it is new."""
        if row < self.num_rows:
            for name, (_, value, _) in self._fields.items():
                getattr(self, name)[row] = value

    def _fresh(self, name: str, count: int) -> npt.NDArray[Any]:
        dtype, value, shape = self._fields[name]
        return np.full((count, *shape), value, dtype)
