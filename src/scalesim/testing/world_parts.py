"""What the parts of a memory world, each of which has one kind of state, use of the world."""

from __future__ import annotations

import random
from typing import Protocol

from scalesim.memory.manager import MemoryManager
from scalesim.memory.state import StateAccess
from scalesim.testing.bed import Bed


class World(Protocol):
    """A memory world, as its parts see it. Sources of the tags ``broken`` cannot be read."""

    bed: Bed
    manager: MemoryManager
    state: StateAccess
    rng: random.Random
    broken: set[int]

    def new_tag(self) -> int: ...

    def request(self, agent: int, kind: str, pick: int, length: int, spare: int) -> None: ...

    def expect_agent(self, agent: int, at: float | None) -> None: ...

    def plan(self) -> None: ...

    def land(self, count: int) -> None: ...

    def poll(self) -> None: ...
