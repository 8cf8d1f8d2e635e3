"""Adapters in a memory world: they come, are used by requests, and go, also while in use."""

from __future__ import annotations

from scalesim.memory.lease import AttachmentSpec
from scalesim.memory.leases.adapters import AdapterContent, adapter_spec
from scalesim.testing.contents import adapter_bytes, check_pages, digest_of
from scalesim.testing.held import FlakySource
from scalesim.testing.tags import adapter_layout
from scalesim.testing.world_parts import World


class WorldAdapters:
    """The adapters of ``world``, under ``num_names`` names: (tag, number of pages). The device pool
    has ``num_pages``."""

    def __init__(self, world: World, num_names: int, num_pages: int) -> None:
        self._world, self._num_names, self._num_pages = world, num_names, num_pages
        self._loaded: dict[int, tuple[int, int]] = {}

    def load(self, name: int, num_pages: int) -> None:
        """Give an adapter name new content; the old content is freed unless it is in use."""
        if not self._num_names:
            return
        name %= self._num_names
        self.unload(name)
        tag, count = self._world.new_tag(), 1 + num_pages % max(1, self._num_pages // 3)
        self._loaded[name] = (tag, count)
        self._add(tag, count)

    def _add(self, tag: int, count: int) -> None:
        world = self._world
        pages = adapter_bytes(tag, count, world.bed.device.shape[1])
        source, layout = FlakySource(tag, pages, world.broken), adapter_layout(tag, count)
        world.manager.add_adapter(
            AdapterContent(digest_of(tag), layout, count, None, source, pages if tag % 2 else None)
        )

    def unload(self, name: int) -> None:
        """Remove an adapter, also one in use: leases keep the pages that they hold."""
        if self._num_names and (found := self._loaded.pop(name % self._num_names, None)):
            self._world.manager.remove_adapter(digest_of(found[0]))

    def unload_all(self) -> None:
        for name in list(self._loaded):
            self.unload(name)

    def restore(self) -> None:
        """Add all adapters again, to memory that was made anew."""
        for tag, count in self._loaded.values():
            self._add(tag, count)

    def break_source(self, name: int) -> None:
        """Make the adapter's source unreadable, or readable again."""
        if self._num_names and (found := self._loaded.get(name % self._num_names)):
            self._world.broken ^= {found[0]}

    def spec(self, agent: int, pick: int, num_tokens: int) -> AttachmentSpec | None:
        """The adapter of a request, mostly its agent's own; active from the first token or a later
        one."""
        if not self._loaded or pick % 4 == 0:
            return None
        names = sorted(self._loaded)
        tag, count = self._loaded[names[agent % len(names)]]
        start = 0 if pick % 3 else pick % num_tokens
        self._world.manager.bind_adapter(agent, digest_of(tag))
        return adapter_spec(digest_of(tag), adapter_layout(tag, count), start)

    def check(self) -> None:
        """Check that all pages hold what they should, on each tier."""
        bed = self._world.bed
        for segment in self._world.manager.tree.root("adapters").children.values():
            check_pages(segment, bed.device, bed.host)
