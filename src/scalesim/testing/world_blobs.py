"""State of the agents' own in a memory world: values under names, written, shared, read,
deleted."""

from __future__ import annotations

import numpy as np

from scalesim.core import Bytes2D
from scalesim.errors import StateError
from scalesim.memory.kinds import ValueForm
from scalesim.testing.contents import adapter_bytes, digest_of
from scalesim.testing.held import FlakySource
from scalesim.testing.world_parts import World

_SOURCED_TAGS = 1 << 20  # of values that have a source


class WorldBlobs:
    """What the agents of ``world`` keep: by agent and name, the pages."""

    def __init__(self, world: World, num_names: int, num_pages: int) -> None:
        self._world, self._num_names, self._num_pages = world, num_names, num_pages
        self._kept: dict[int, dict[str, Bytes2D]] = {}

    def set(self, agent: int, name: int, num_pages: int, pick: int) -> None:
        """Give an agent a value: a new one, the one that it has with one page changed, or one of a
        few that have a source, so that several agents have the same."""
        if not self._num_names:
            return
        world, key = self._world, str(name % self._num_names)
        count = 1 + num_pages % max(1, self._num_pages // 3)
        if pick % 4 == 0:
            self._refer(agent, key, pick // 4 % 3, count)
            return
        rows = self._kept.get(agent, {}).get(key)
        if rows is None or pick % 3 == 0:
            rows = np.zeros((count, world.bed.device.shape[1]), np.uint8)
        rows = rows.copy()
        rows[pick % len(rows)] = [world.rng.randrange(256) for _ in range(rows.shape[1])]
        try:
            written = world.state.write(agent, key, ValueForm(rows.size, "rows", ("", ())), rows)
        except StateError as error:
            held, usable = world.manager.blobs.num_pages, world.manager.host.num_usable
            assert held + len(rows) > usable, (held, len(rows), usable, error)
            return
        if written is None:
            assert world.manager.is_moving, f"no room for {len(rows)} pages, and nothing moves"
        else:
            self._kept.setdefault(agent, {})[key] = rows

    def _refer(self, agent: int, key: str, which: int, count: int) -> None:
        world, tag = self._world, _SOURCED_TAGS + 100 * which + count
        rows = adapter_bytes(tag, count, world.bed.device.shape[1])
        form = ValueForm(rows.size, "rows", (), tag, digest_of(tag))
        world.state.refer(agent, key, form, FlakySource(tag, rows, world.broken), rows)
        self._kept.setdefault(agent, {})[key] = rows

    def break_sources(self, which: int) -> None:
        """Make the sources of some values unreadable, or readable again."""
        first = _SOURCED_TAGS + 100 * (which % 3)
        self._world.broken ^= set(range(first, first + 100))

    def delete(self, agent: int, name: int) -> None:
        key = str(name % max(1, self._num_names))
        if key in self._kept.get(agent, {}):
            del self._kept[agent][key]
            self._world.state.remove(agent, key)

    def delete_all(self) -> None:
        for agent, names in self._kept.items():
            for name in names:
                self._world.state.remove(agent, name)
        self._kept.clear()

    def use(self, agent: int, pick: int) -> None:
        """Load what an agent keeps for its call at the next tick, and change a page of each value,
        while the copies run or when they have ended."""
        world = self._world
        world.expect_agent(agent, world.manager.timing.now + 1)
        world.plan()
        world.land(pick % 4)
        world.poll()
        for name in list(self._kept.get(agent, {})):
            self.set(agent, int(name), 0, 12 * pick + 1)

    def read(self, agent: int) -> None:
        """Read what an agent keeps, wherever it lies."""
        world = self._world
        for name, rows in self._kept.get(agent, {}).items():
            found = world.state.read(agent, name).rows
            if found is None:
                assert world.manager.blobs.find(agent, name).source is not None, (agent, name)
            else:
                assert (found == rows).all(), (agent, name)

    def has_any(self, agent: int) -> bool:
        return bool(self._kept.get(agent))

    def fork(self, parent: int, child: int) -> None:
        """Note that ``child`` has what ``parent`` has; memory's own fork gives it."""
        self._kept[child] = dict(self._kept.get(parent, {}))

    def forget(self, agent: int) -> None:
        self._kept.pop(agent, None)

    def forget_all(self) -> None:
        self._kept.clear()

    def check(self) -> None:
        """Check the bytes of each agent's state on each tier, and that nothing else is kept."""
        bed, books, kept = self._world.bed, self._world.manager.blobs, set()
        assert set(books.agents()) == {agent for agent, names in self._kept.items() if names}
        for agent, names in self._kept.items():
            assert names.keys() == books.of(agent).keys(), (agent, names.keys(), books.of(agent))
            for name, rows in names.items():
                blob = books.find(agent, name)
                segment = blob.segment
                kept.add(segment)
                assert agent in {owner.id for owner in segment.owners}, (agent, name, segment)
                assert blob.source is not None or segment.host.valid == len(rows), segment
                for tier, pool in (("device", bed.device), ("host", bed.host)):
                    run = getattr(segment, tier)
                    there = list(run[: run.valid])
                    assert (pool[there] == rows[: len(there)]).all(), f"{segment} on the {tier}"
        tree = self._world.manager.tree
        roots = tree.root("blobs"), tree.root("sourced blobs")
        found = {segment for root in roots for segment in root.children.values()}
        left = [segment for segment in found - kept if segment.owners or not segment.is_moving]
        assert not left, f"{left} are nobody's"
