"""Models beside the world's own: their weights lie on runs of consecutive pages, which compaction
makes by moving idle pages."""

from __future__ import annotations

from scalesim.memory.lease import AttachmentSpec
from scalesim.memory.leases.weights import WeightsContent, weights_spec
from scalesim.testing.contents import adapter_bytes, check_pages, digest_of
from scalesim.testing.held import FlakySource
from scalesim.testing.tags import adapter_layout, model_block_size, weight_runs
from scalesim.testing.world_parts import World


class WorldModels:
    """The models of ``world`` by name: (tag, pages of its weights); and the name of the model of
    each agent that has one."""

    def __init__(self, world: World, num_names: int, num_pages: int) -> None:
        self._world, self._num_names, self._num_pages = world, num_names, num_pages
        self._added: dict[int, tuple[int, int]] = {}
        self._used: dict[int, int] = {}

    def add(self, name: int, num_pages: int) -> None:
        """Give a model's name new weights. Its agents use them from their next requests on; the old
        ones are freed, with the KV that was computed with them, unless they are in use."""
        if not self._num_names:
            return
        world, name = self._world, name % self._num_names
        most = max(1, self._num_pages // 2)  # and half of that at least
        tag, count = world.new_tag(), most - num_pages % max(1, most // 2)
        before, self._added[name] = self._added.get(name), (tag, count)
        pages = adapter_bytes(tag, count, world.bed.device.shape[1])
        source = FlakySource(tag, pages, world.broken)
        world.manager.add_weights(
            WeightsContent(digest_of(tag), weight_runs(tag, count), source,
                           pages if tag % 2 else None)
        )  # fmt: skip
        for agent, used in self._used.items():
            if used == name:
                world.manager.bind_weights(agent, digest_of(tag))
        if before is not None:
            world.manager.remove_weights(digest_of(before[0]))

    def use(self, agent: int, name: int) -> None:
        """Let an agent use a model, or every third time the world's own."""
        if self._added and name % 3:
            self._used[agent] = sorted(self._added)[name % len(self._added)]
            tag, _ = self._added[self._used[agent]]
            self._world.manager.bind_weights(agent, digest_of(tag))
        else:
            self._used.pop(agent, None)
            self._world.manager.bind_weights(agent, None)

    def call(self, agent: int, name: int, pick: int) -> None:
        """A short request of an agent that has another model now."""
        self.use(agent, name)
        self._world.request(agent, "fresh", pick, 1 + pick % 5, 0)

    def break_source(self, name: int) -> None:
        """Make the source of a model's weights unreadable, or readable again."""
        if self._num_names and (found := self._added.get(name % self._num_names)):
            self._world.broken ^= {found[0]}

    def fork(self, parent: int, child: int) -> None:
        """Note that ``child`` uses what ``parent`` does; memory's own fork binds it."""
        if parent in self._used:
            self._used[child] = self._used[parent]

    def forget(self, agent: int) -> None:
        self._used.pop(agent, None)

    def forget_all(self) -> None:
        self._used.clear()

    def spec(self, agent: int) -> AttachmentSpec | None:
        """The weights of an agent's request; ``None``: the world's own."""
        if agent not in self._used:
            return None
        tag, count = self._added[self._used[agent]]
        size = model_block_size(tag, self._world.manager.block_size)
        return weights_spec(digest_of(tag), adapter_layout(tag, count), size)

    def check(self) -> None:
        """Check that all pages hold what they should, on each tier, and that the parts on the
        device are whole and lie in one piece each."""
        bed = self._world.bed
        for segment in self._world.manager.tree.root("weights").children.values():
            check_pages(segment, bed.device, bed.host)
            for start, length in segment.runs.spans():
                part = list(segment.device[start : start + length])
                assert not part or part == [*range(part[0], part[0] + length)], (segment, part)
