"""Row numbers for agents, and arrays indexed by them.

The row of a removed agent is given to another agent later; the owner of such arrays clears the row
at the removal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from scalesim.checks import agent_ids, reading, shown
from scalesim.core import AgentId, Int64s
from scalesim.distance.state import PlainState, put, taken
from scalesim.errors import ConfigError, RequestError


class Roster:
    """A mapping from agents to rows. ``len`` counts rows, free ones included."""

    def __init__(self) -> None:
        self.ids: list[AgentId] = []
        self._rows: dict[AgentId, int] = {}
        self._free: list[int] = []

    @staticmethod
    def of(agents: Sequence[AgentId]) -> Roster:
        """A roster of ``agents``, rows in this order. Raises ``ConfigError`` if one is named
        twice."""
        agents, roster = agent_ids("agents", agents, ConfigError), Roster()
        roster.rows(agents)
        if twice := len(agents) - len(roster):
            raise ConfigError(f"{twice} of {len(agents)} agents are named twice")
        return roster

    def __len__(self) -> int:
        return len(self.ids)

    def get(self, agent: AgentId) -> int | None:
        """The agent's row; ``None`` if it has none."""
        return self._rows.get(agent)

    def row(self, agent: AgentId) -> int:
        """The agent's row; a free one, or a new one, if it has none yet."""
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
        """Forget ``agent``, and free its row. Returns that row; ``None`` if it had none."""
        row = self._rows.pop(agent, None)
        if row is not None:
            self.ids[row] = ""
            self._free.append(row)
        return row

    def rows(self, agents: Sequence[AgentId]) -> Int64s:
        """``row`` of each, ``[n]``."""
        found = np.fromiter(map(self._rows.get, agents, repeat(-1)), np.int64, len(agents))
        if found.min(initial=0) < 0:
            found = np.fromiter(map(self.row, agents), np.int64, len(agents))
        return found

    def known(self, agents: Iterable[AgentId]) -> Int64s:
        """The rows of ``agents``, ``[n]``. Raises ``RequestError`` for an agent without one."""
        with reading("agents"):
            agents = list(agents)
            rows = list(map(self._rows.get, agents))
        if None in rows:
            missing = shown(agents[rows.index(None)])
            raise RequestError(f"agent {missing} is not one of this source; give all at once")
        return np.array(rows, np.int64)

    def state(self) -> PlainState:
        """The mapping, for ``restore``."""
        return {"ids": list(self.ids), "free": list(self._free)}

    def restore(self, state: PlainState) -> None:
        """Have the mapping that ``state`` gave."""
        free = set(state["free"])
        self.ids, self._free = list(state["ids"]), list(state["free"])
        self._rows = {agent: row for row, agent in enumerate(self.ids) if row not in free}

    def names(self, rows: Iterable[int]) -> list[AgentId]:
        """The agents of ``rows``."""
        return list(map(self.ids.__getitem__, rows))


class Columns:
    """A struct of arrays of one length, a row per agent. Each array is an attribute.

    ``grow`` replaces the arrays, in steps of an eighth; keep no reference to an array across it.
    ``fields`` maps a name to (dtype, value of a new row, shape of one entry).
    """

    def __init__(self, **fields: tuple[Any, Any, tuple[int, ...]]) -> None:
        self._fields = fields
        self.num_rows = 0
        for name in fields:
            setattr(self, name, self._fresh(name, 0))

    def __getattr__(self, name: str) -> npt.NDArray[Any]:
        raise AttributeError(name)  # declares the fields' type: they are set in __init__

    def grow(self, num_rows: int) -> None:
        """Grow to at least ``num_rows`` rows."""
        if num_rows <= self.num_rows:
            return
        capacity = max(16, num_rows + num_rows // 8)
        for name in self._fields:
            more = self._fresh(name, capacity - self.num_rows)
            setattr(self, name, np.concatenate([getattr(self, name), more]))
        self.num_rows = capacity

    def state(self) -> PlainState:
        """Copies of all arrays, by name."""
        return taken(self, *self._fields)

    def restore(self, state: PlainState) -> None:
        """Have the arrays that ``state`` gave. Raises ``ValueError`` for others."""
        if len({len(state[name]) for name in self._fields}) != 1:
            raise ValueError("columns of different lengths")
        put(self, state, *self._fields)
        self.num_rows = len(state[next(iter(self._fields))])

    def clear(self, row: int) -> None:
        """Set ``row`` to the values of a new row."""
        if row < self.num_rows:
            for name, (_, value, _) in self._fields.items():
                getattr(self, name)[row] = value

    def _fresh(self, name: str, count: int) -> npt.NDArray[Any]:
        dtype, value, shape = self._fields[name]
        return np.full((count, *shape), value, dtype)
