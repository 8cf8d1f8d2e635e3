"""An owner, as its segments know it. Segments are typed ``Any`` in this file, since a segment knows
its owners."""

from __future__ import annotations

from typing import Any, Protocol

from scalesim.core import AgentId
from scalesim.memory.tree.small_map import SmallMap


class Owner(Protocol):
    """An agent as its segments know it. ``AgentState`` implements it and documents each member."""

    id: AgentId
    calls: int
    next_use: float | None
    next_seq: int
    paths: SmallMap[Any]
    is_forgotten: bool
    may_be_ranked: bool

    @property
    def rarely_reuses_paths(self) -> bool: ...

    def unlikely_to_return(self, segment: Any) -> bool: ...

    def is_ordered_by_only(self, segment: Any) -> bool: ...

    def detach(self, segment: Any) -> None: ...

    def path_joined(self, upper: Any, lower: Any) -> None: ...

    def path_cut(self, segment: Any, parent: Any) -> None: ...
