"""The world of the memory layer: the real memory manager on a test bed, beside a reference model.

The model has no page ids: it is the set of prefixes whose KV was computed soundly. Every operation
takes small integers, so that a state machine and a random walk can drive the same code. ``check``
must hold after each operation.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from scalesim.batch import LaunchedStep
from scalesim.core import Int64s
from scalesim.memory.audit.integrity import check_integrity
from scalesim.memory.image import put_image
from scalesim.memory.state import StateAccess
from scalesim.memory.tree.prefix_tree import TEXT
from scalesim.memory.tree.segment import Segment
from scalesim.memory.tree.walk import descendants, lineage
from scalesim.testing.bed import OURS, Bed, Factories
from scalesim.testing.contents import PageReader, Paths
from scalesim.testing.held import OpenLease, batch_of
from scalesim.testing.world_adapters import WorldAdapters
from scalesim.testing.world_blobs import WorldBlobs
from scalesim.testing.world_models import WorldModels
from scalesim.testing.world_snapshot import WorldSnapshot

AGENTS = 5
MAX_LEASES = 6
FAR = 1e9
KINDS = ("own", "own", "own", "own", "extend", "repeat", "share", "template", "fresh")
"""How a request is related to earlier ones; repeated kinds are drawn more often."""


@dataclass(frozen=True)
class WorldShape:
    """The sizes of a world. ``host`` is the host pool's size as a share of the device pool's;
    ``disk`` is the same of the disk; ``adapters`` is the number of adapter names that come and go
    and that requests use; ``blobs`` is the number of names under which agents keep state;
    ``models`` is the number of names of models that agents use beside the world's own, whose
    weights are replaced now and then, and of whose KV a page holds ``block_size`` tokens or fewer.
    ``lasting``: a walk takes snapshots, goes on from them in memory that is made anew, and forks
    all agents into a second world."""

    pages: int = 16
    host: float = 1.0
    block_size: int = 4
    policy: str = "deadline"
    seed: int = 0
    adapters: int = 0
    disk: float = 0.0
    blobs: int = 0
    lasting: bool = False
    models: int = 0


@dataclass
class MemoryWorld:
    """A world of ``shape``. ``factories`` replace parts of ScaleSim by the parts under test."""

    shape: WorldShape
    factories: Factories = OURS
    open_leases: list[OpenLease] = field(default_factory=list)
    history: list[list[int]] = field(default_factory=list)  # tokens
    broken: set[int] = field(default_factory=set)  # tags whose source cannot be read
    num_tags: int = 0  # so many contents were made
    is_forked: bool = False  # whether agents from ``AGENTS`` on are those of a second world
    snapshot: WorldSnapshot | None = None

    def __post_init__(self) -> None:
        shape = self.shape
        self._begin()
        self.adapters = WorldAdapters(self, shape.adapters, shape.pages)
        self.blobs = WorldBlobs(self, shape.blobs, shape.pages)
        self.models = WorldModels(self, shape.models, shape.pages)
        self.paths = Paths(shape.block_size)
        self.sound: set[int] = set()
        self.rng = random.Random(shape.seed)
        self.templates = [self._random_tokens(shape.block_size * 2 + 1) for _ in range(3)]
        private = max(1, shape.pages // 3) * shape.block_size
        self.prefixes = [self._random_tokens(private) for _ in range(AGENTS)]

    def _begin(self) -> None:
        """Make memory, a runner and a link, with which nothing has happened yet."""
        shape = self.shape
        self.bed = Bed(
            self.factories,
            pages=shape.pages,
            host_pages=int(shape.pages * shape.host),
            block_size=shape.block_size,
            policy=shape.policy,
            max_num_seqs=MAX_LEASES,
            max_blocks=shape.pages + 1,
            steps_in_flight=2,
            seed=shape.seed,
            bad=lambda slot, token: slot in self.poisoned,
            reader=self._reader,
            disk_pages=int(shape.pages * shape.disk),
        )
        self.manager = self.bed.memory
        self.open_leases.clear()
        self.state = StateAccess(self.manager, self.bed.pages)
        self.poisoned: set[int] = set()
        self.flights: list[tuple[LaunchedStep, list[tuple[OpenLease, int]]]] = []
        self.copying: dict[tuple[int, int], int] = {}  # (step, index) -> page to be written
        self.num_launched = 0

    # -- requests -----------------------------------------------------------------------------

    def acquire(self, agent: int, kind: str, pick: int, length: int, spare: int) -> None:
        if len(self.open_leases) == MAX_LEASES:
            return
        if self.is_forked and pick % 2:
            agent = agent % AGENTS + AGENTS
        tokens, model = self.prompt(agent, kind, pick, length), self.models.spec(agent)
        size = self.manager.block_size_of(() if model is None else (model,))
        tokens = tokens[: self.shape.pages * size]
        use = model or self.adapters.spec(agent, pick, len(tokens))
        blocks = -(-len(tokens) // size) + spare % 3
        share = self.shape.pages // 2 if self.open_leases and pick % 2 else None
        packed = np.array(tokens, np.int32).tobytes()
        lease = self.manager.acquire(
            agent,
            packed,
            blocks,
            attachments=() if use is None else (use,),
            max_loading_pages=share,
        )
        if lease is None:
            return
        cached = lease.num_cached
        assert cached < len(tokens), (cached, len(tokens))
        _, known = self.paths.known(tokens, use)
        assert not cached or int(known[cached - 1]) in self.sound, (
            f"{cached} cached tokens of {tokens} were never computed soundly"
        )
        slot = next(
            s for s in range(MAX_LEASES) if s not in {opened.slot for opened in self.open_leases}
        )
        self.open_leases.append(OpenLease(lease, agent, tokens, slot, cached, cached, use))

    # -- prompts ------------------------------------------------------------------------------

    def new_tag(self) -> int:
        """The tag of a content that was not there before."""
        self.num_tags += 1
        return self.num_tags

    def prompt(self, agent: int, kind: str, pick: int, length: int) -> list[int]:
        """The tokens of a prompt; ``kind`` tells how they are related to earlier requests."""
        fresh = self._random_tokens(length)
        if kind == "own":
            return self.prefixes[agent % AGENTS] + fresh
        if kind == "template":
            return self.templates[pick % len(self.templates)] + fresh
        if kind == "fresh" or not self.history:
            return fresh
        old = self.history[pick % len(self.history)]
        if kind == "repeat":
            return list(old)
        if kind == "extend":
            return old + fresh
        return old[: 1 + pick % len(old)] + fresh

    def request(self, agent: int, kind: str, pick: int, length: int, spare: int) -> None:
        """Run a request from its look-up to its release; it sometimes waits a little for copies."""
        before = len(self.open_leases)
        self.acquire(agent, kind, pick, length, spare)
        for _ in range(pick % 4):
            if len(self.open_leases) > before and self.open_leases[-1].lease.is_ready:
                break
            self.land(20)
            self.poll()
            if len(self.open_leases) == before:
                self.acquire(agent, kind, pick, length, spare)
        if len(self.open_leases) <= before or not self.open_leases[-1].lease.is_ready:
            return
        opened = self.open_leases[-1]
        while opened in self.open_leases and opened.launched < len(opened.tokens):
            self.launch(1 + pick % 20, 1 << opened.slot)
            self.collect()
        while self.flights:
            self.collect()
        if opened in self.open_leases:
            self.release(self.open_leases.index(opened), True)

    def launch(self, count: int, mask: int) -> None:
        """Launch a step with the next ``count`` tokens of the ready leases in the bit set ``mask``;
        a sequence at its end generates."""
        if len(self.flights) == 2:
            self.collect()
        work = []
        for opened in self.open_leases:
            if not opened.lease.is_ready or not mask >> opened.slot & 1:
                continue
            room = opened.lease.num_tokens - opened.launched
            take = min(count, room)
            while len(opened.tokens) < opened.launched + min(take, 1):
                opened.tokens += self._random_tokens(1)
            take = min(take, len(opened.tokens) - opened.launched)
            if take > 0:
                work.append((opened, opened.launched, opened.launched + take))
        if not work:
            return
        step = self.num_launched
        self.num_launched += 1
        self.manager.launched(step, 0)
        batch = batch_of(step, work, self.manager.table)
        copied = enumerate(batch.page_copies[:, 1].tolist())
        self.copying |= {(step, index): page for index, page in copied}
        for opened, _, end in work:
            opened.launched = end
        ends = [(opened, end) for opened, _, end in work]
        self.flights.append((self.bed.runner.launch(batch), ends))

    def run_device(self) -> None:
        """Let the device run a step whose result the host has not collected yet."""
        self.bed.tags.run_next()

    def collect(self) -> None:
        if not self.flights:
            return
        step, ends = self.flights.pop(0)
        output = self.bed.runner.collect(step)
        self.copying = {key: page for key, page in self.copying.items() if key[0] > step.step}
        for (opened, end), bad in zip(ends, output.bad.tolist(), strict=True):
            if opened not in self.open_leases:
                continue
            if bad:
                assert opened.slot in self.poisoned, (
                    f"slot {opened.slot} read somebody's bad values"
                )
                self._close(opened, sound=0)
            else:
                opened.done = end
                _, known = self.paths.known(opened.tokens[:end], opened.use)
                self.sound.update(known.tolist())

    def poison(self, pick: int) -> None:
        """Make the next step of one lease give values that are not finite."""
        if self.open_leases:
            self.poisoned.add(self.open_leases[pick % len(self.open_leases)].slot)

    def grow(self, pick: int, more: int) -> None:
        opened = self._pick(pick)
        if opened is not None and opened.lease.is_ready:
            room = self.shape.pages - opened.lease.num_blocks
            self.manager.grow(opened.lease, opened.lease.num_blocks + min(more, room))

    def commit(self, pick: int) -> None:
        opened = self._pick(pick)
        if opened is not None and opened.lease.is_ready:
            self.manager.commit(opened.lease, opened.token_bytes, opened.done)

    def release(self, pick: int, keep: bool) -> None:
        """Release a lease and keep its sound tokens, or (as after bad values) none; a loading lease
        is aborted."""
        opened = self._pick(pick)
        if opened is not None:
            ready = opened.lease.is_ready
            self._close(opened, sound=opened.done if keep and ready else 0)

    def abort(self, again: bool) -> None:
        """Abort a lease whose loads have begun; with ``again``, acquire the same at once."""
        for opened in self.open_leases:
            if not opened.lease.is_ready:
                self.land(1)
                self._close(opened, sound=0)
                if again:
                    self.acquire(opened.agent, "repeat", len(self.history) - 1, 1, 0)
                return

    # -- the simulation and the link ----------------------------------------------------------

    def expect_agent(self, agent: int, at: float | None) -> None:
        self.manager.hint([(agent, at)])

    def advance(self, ticks: int) -> None:
        now = self.manager.timing.now + ticks
        self.manager.tick(now, 0.001 * ticks or None)

    def fork(self, parent: int, child: int) -> None:
        if self.shape.blobs or self.shape.models:  # the child of a fork is new
            if parent == child:
                return
            self.forget_agent(child)
            self.blobs.fork(parent, child)
            self.models.fork(parent, child)
        self.manager.fork(parent, child)

    def drop_agent(self, agent: int) -> None:
        is_busy = any(opened.agent == agent for opened in self.open_leases)
        if not is_busy and not self.blobs.has_any(agent):
            self.models.forget(agent)
            self.manager.owners.drop(agent)

    def forget_agent(self, agent: int) -> None:
        """Forget an agent at any moment: with open leases, or with loads and saves in flight."""
        before = {segment for segment in self.manager.tree if not segment.owners}
        self.manager.forget(agent)
        self.blobs.forget(agent)
        self.models.forget(agent)
        assert agent not in self.manager.owners.agents
        for segment in self.manager.tree:
            assert all(owner.id != agent or owner.is_forgotten for owner in segment.owners)
        self._check_orphans(before)

    def forget_all(self) -> None:
        """Forget all agents: once no lease holds their pages, these are free on both tiers."""
        before = {segment for segment in self.manager.tree if not segment.owners}
        for agent in list(self.manager.owners.agents):
            self.manager.forget(agent)
        self.blobs.forget_all()
        self.models.forget_all()
        self._check_orphans(before)

    def fork_world(self) -> None:
        """Fork all agents into a second world, whose agents call from now on as well."""
        if not self.is_forked:
            self.is_forked = True
            for agent in range(AGENTS):
                self.fork(agent, agent + AGENTS)

    def close_world(self) -> None:
        """Forget the agents of the second world."""
        self.is_forked = False
        for agent in range(AGENTS, 2 * AGENTS):
            self.forget_agent(agent)
        left = set(self.manager.owners.agents) - set(range(AGENTS))
        assert not left, f"{left} own what a closed world owned"

    # -- snapshots ----------------------------------------------------------------------------

    def look(self) -> None:
        """Begin a snapshot, unless one is under way: one look at memory."""
        if self.snapshot is None:
            self.snapshot = WorldSnapshot(*self.factories.look(self.manager, lambda id: True))

    def copy_blocks(self, count: int) -> None:
        """Copy the blocks of the next ``count`` segments of the snapshot, at whatever state memory
        is in by now. What is on the disk is read later."""
        if self.snapshot is not None:
            while self.flights:  # such a copy waits for the device
                self.collect()
            self.snapshot.copy(count, self.bed)

    def read_slots(self) -> None:
        """Read what was on the disk when it was to be copied."""
        if self.snapshot is not None:
            self.snapshot.read()

    def restart(self) -> None:
        """Go on from the snapshot, or from this moment if there is none, in memory that is made
        anew: all that came after it is lost. Not where agents keep state, or use models."""
        if self.shape.blobs or self.shape.models:
            return
        self.look()
        self.copy_blocks(10**6)
        self.read_slots()
        assert self.snapshot is not None
        image, pages = self.snapshot.image, self.snapshot.pages
        self.snapshot = None
        self.broken.clear()
        self._begin()
        self.adapters.restore()
        bed = self.bed
        put_image(self.manager, image, lambda at, most: pages[at][:most], bed.pages, bed.store)
        self.is_forked = not {agent.id for agent in image.agents} <= {*range(AGENTS)}

    def turn_over(self, count: int) -> None:
        """Forget all agents, and let ``count`` others speak who come into their places: pages on
        every tier are others' soon after."""
        self.forget_all()
        for pick in range(count):
            self.request(pick % AGENTS, "fresh", 3, 4 * self.shape.block_size, 0)
            self.idle(2)

    def _check_orphans(self, before: set[Segment]) -> None:
        """Check that a segment without an owner stays only if it had none ``before``, or if it or a
        segment below it is in use."""
        for segment in self.manager.tree:
            is_held = any(node.pins or node.is_moving for node in (segment, *descendants(segment)))
            if not (segment.owners or segment in before or segment.source is not None or is_held):
                raise AssertionError(f"{segment} was a forgotten agent's, and stays")

    def plan(self) -> None:
        self.manager.plan(0.0)

    def idle(self, times: int) -> None:
        """Nothing computes for a while: what is worth copying is copied."""
        for _ in range(times):
            self.plan()
            self.land(12)
            self.poll()

    def land(self, count: int) -> None:
        self.bed.move(count)

    def fail_copy(self) -> None:
        if self.bed.hostile is not None:
            self.bed.hostile.failures = 1

    def poll(self) -> None:
        for lease in self.manager.poll():
            opened = next(opened for opened in self.open_leases if opened.lease is lease)
            if lease.failed is not None:
                self.open_leases.remove(opened)
                self.poisoned.discard(opened.slot)
                self.manager.fail(lease)

    def exhaust(self) -> None:
        """Acquire leases until the manager refuses."""
        for pick in range(MAX_LEASES):
            self.acquire(pick % AGENTS, "fresh", 1, self.shape.block_size * 2, pick)

    def quiesce(self) -> None:
        """Release everything, and check that every page is free and no ticket is open."""
        if self.bed.hostile is not None:
            self.bed.hostile.failures = 0
        self.broken.clear()
        while self.flights:
            self.collect()
        while self.open_leases:
            self.release(0, True)
        self.drain()
        self.check()
        self.adapters.unload_all()
        self.blobs.delete_all()
        self.manager.clear()
        self.check()
        self.bed.check_all_free()

    def drain(self) -> None:
        """Wait until every copy has ended."""
        transfers = self.manager.residency.transfers
        for _ in range(10_000):
            if not transfers:
                return
            self.bed.link.wait(1.0)
            self.poll()
        raise AssertionError(f"{len(transfers)} tickets do not end")

    # -- what must hold -----------------------------------------------------------------------

    def check(self) -> None:
        check_integrity(self.manager, [opened.lease for opened in self.open_leases])
        self._check_contents()

    def _check_contents(self) -> None:
        """Check the tags of each segment on each tier, and of each lease through its pages."""
        bed, tree = self.bed, self.manager.tree
        device = PageReader(bed.device, self.shape.block_size)
        host = PageReader(bed.host, self.shape.block_size)
        disk = PageReader(bed.disk, self.shape.block_size)
        copying = set(self.copying.values())
        for segment in chain.from_iterable(map(descendants, tree.roots(TEXT))):
            if segment.is_partial and segment.device[0] in copying:
                continue  # a step in flight writes it: right for steps after that one
            tokens, known, start = self.paths.of(segment)
            device.add(segment, segment.device[: segment.device.valid], tokens, known, start)
            host.add(segment, segment.host[: segment.host.valid], tokens, known, start)
            disk.add(segment, segment.disk[: segment.disk.valid], tokens, known, start)
        for kind in (self.adapters, self.models, self.blobs):
            kind.check()
        for opened in self.open_leases:
            if opened.lease.is_ready:
                pages = [p for s in reversed(lineage(opened.lease.end)) for p in s.device]
                tokens, known = self.paths.known(opened.tokens[: self._written(opened)], opened.use)
                device.add(opened.lease, pages + opened.lease.private, tokens, known, 0)
        device.check("device")
        host.check("host")
        disk.check("disk")

    def _written(self, opened: OpenLease) -> int:
        """The number of tokens whose KV is in the pages of ``opened`` now."""
        lease = opened.lease
        taken = not set(self.copying.values()).isdisjoint(lease.private[:1])  # a tail, as above
        if lease.copies or taken or any(h is opened for _, ends in self.flights for h, _ in ends):
            return min(opened.done, opened.lease.num_shared * opened.lease.block_size)
        return opened.done

    def _reader(self, slot: int) -> Int64s:
        opened = next(opened for opened in self.open_leases if opened.slot == slot)
        return np.array(opened.tokens, np.int64)

    # -- parts --------------------------------------------------------------------------------

    def _pick(self, pick: int) -> OpenLease | None:
        return self.open_leases[pick % len(self.open_leases)] if self.open_leases else None

    def _close(self, opened: OpenLease, *, sound: int) -> None:
        self.open_leases.remove(opened)
        self.poisoned.discard(opened.slot)
        self.history = [*self.history[-11:], opened.tokens]
        self.manager.release(opened.lease, opened.token_bytes[: 4 * sound], sound)

    def _random_tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(3) for _ in range(max(1, count))]
