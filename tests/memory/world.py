"""A world for the memory layer: the real manager, tree, planner and pools; a tag runner as the
device; a hostile link; and a model of what must hold, which knows no page ids.

The model is, per sharing domain, the set of prefixes whose KV was computed soundly. Every operation
takes small integers, so that a state machine and a random walk can drive the same code.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from scalesim.core import AdapterBatch, Batch, SamplingBatch, Step
from scalesim.errors import AdapterError
from scalesim.memory.adapters import AdapterContent, AdapterUse
from scalesim.memory.agents import lineage
from scalesim.memory.lease import Lease
from scalesim.memory.links import Timeline
from scalesim.memory.look_ahead import Pace
from scalesim.memory.manager import MemoryManager
from scalesim.memory.policies import policy_named
from scalesim.memory.segment import Segment
from scalesim.testing.hostile_link import HostileLink
from scalesim.testing.integrity import check_integrity
from scalesim.testing.tag_runner import TagRunner
from scalesim.testing.tags import (
    adapter_layout,
    adapter_pages,
    are_tags_of,
    lineages_of,
    page_bytes_for,
    under_adapter,
    view_tags,
)

AGENTS = 5
MAX_LEASES = 6
DOMAINS = ("first", "second")
FAR = 1e9


@dataclass(frozen=True)
class Shape:
    """``host`` is the host pool's size as a share of the device pool's. With ``adapters``, so many
    names of adapters come and go, and requests use them."""

    pages: int = 16
    host: float = 1.0
    block_size: int = 4
    policy: str = "deadline"
    seed: int = 0
    adapters: int = 0


@dataclass(frozen=True)
class FlakySource:
    """An adapter's pages; reading fails while its tag is among ``broken``."""

    tag: int
    pages: np.ndarray
    broken: set[int]

    def read(self) -> np.ndarray:
        if self.tag in self.broken:
            raise AdapterError(f"adapter {self.tag} cannot be read")
        return self.pages


@dataclass(eq=False)
class Held:
    """An open lease: ``tokens`` are what it is to compute, ``done`` how many were collected
    soundly."""

    lease: Lease
    agent: int
    domain: str
    tokens: list[int]
    slot: int
    done: int
    launched: int
    use: AdapterUse | None = None

    def lineage_tokens(self, count: int) -> np.ndarray:
        """The first ``count`` tokens as tags keep them."""
        return coded(np.array(self.tokens[:count], np.int64), self.use)

    @property
    def token_bytes(self) -> bytes:
        return np.array(self.tokens, np.int32).tobytes()


@dataclass
class World:
    shape: Shape
    held: list[Held] = field(default_factory=list)
    history: list[tuple[str, list[int]]] = field(default_factory=list)  # (domain, tokens)
    adapters: dict[int, tuple[int, int]] = field(default_factory=dict)  # name -> (tag, pages)
    broken: set[int] = field(default_factory=set)  # tags whose source cannot be read
    num_tags: int = 0

    def __post_init__(self) -> None:
        shape = self.shape
        size = page_bytes_for(shape.block_size)
        num_host = int(shape.pages * shape.host)
        self.device = np.zeros((shape.pages + 1, size), np.uint8)
        self.host = np.zeros((max(1, num_host), size), np.uint8)
        self.timeline = Timeline()
        self.link = HostileLink(
            self.device,
            self.host,
            self.timeline,
            seed=shape.seed,
            max_ticket_pages=1 + shape.seed % 2,
        )
        self.manager = MemoryManager(
            block_size=shape.block_size,
            page_bytes=size,
            device_pages=shape.pages + 1,
            host_pages=num_host,
            num_rows=2 * MAX_LEASES + 1,
            policy=policy_named(shape.policy),
            link=self.link,
        )
        self.runner = TagRunner(
            self.device,
            shape.block_size,
            max_num_seqs=MAX_LEASES,
            max_num_rows=2 * MAX_LEASES + 1,
            max_blocks_per_row=shape.pages + 1,
            steps_in_flight=2,
            timeline=self.timeline,
            bad=lambda slot, token: slot in self.poisoned,
        )
        self.poisoned: set[int] = set()
        self.sound: dict[str, set[int]] = {domain: set() for domain in DOMAINS}
        self.flights: list[tuple[Step, list[tuple[Held, int]]]] = []
        self.copying: dict[tuple[int, int], int] = {}  # (step, index) -> page to be written
        self.num_launched = 0
        self.rng = random.Random(shape.seed)
        self.templates = [self._random_tokens(shape.block_size * 2 + 1) for _ in range(3)]
        private = max(1, shape.pages // 3) * shape.block_size
        self.prefixes = [self._random_tokens(private) for _ in range(AGENTS)]

    # -- requests -----------------------------------------------------------------------------

    def acquire(self, agent: int, kind: str, pick: int, length: int, spare: int) -> None:
        if len(self.held) == MAX_LEASES:
            return
        domain, tokens = self.prompt(agent, kind, pick, length)
        tokens = tokens[: self.shape.pages * self.shape.block_size]
        use = self.adapter_use(agent, pick, len(tokens))
        blocks = -(-len(tokens) // self.shape.block_size) + spare % 3
        share = self.shape.pages // 2 if self.held and pick % 2 else None
        packed = np.array(tokens, np.int32).tobytes()
        lease = self.manager.acquire(
            agent, domain, packed, blocks, adapter=use, max_loading_pages=share
        )
        if lease is None:
            return
        cached = lease.num_cached
        assert cached < len(tokens), (cached, len(tokens))
        known = lineages_of(coded(np.array(tokens, np.int64), use))
        assert not cached or int(known[cached - 1]) in self.sound[domain], (
            f"{cached} cached tokens of {tokens} were never computed soundly in {domain}"
        )
        slot = next(s for s in range(MAX_LEASES) if s not in {held.slot for held in self.held})
        self.held.append(Held(lease, agent, domain, tokens, slot, cached, cached, use))

    # -- adapters -----------------------------------------------------------------------------

    def load_adapter(self, name: int, num_pages: int) -> None:
        """Give a name content that nothing had before; what it had goes, unless it is held."""
        if not self.shape.adapters:
            return
        name %= self.shape.adapters
        self.unload_adapter(name)
        self.num_tags += 1
        tag, count = self.num_tags, 1 + num_pages % max(1, self.shape.pages // 3)
        pages = adapter_pages(tag, count, self.device.shape[1])
        source = FlakySource(tag, pages, self.broken)
        self.adapters[name] = (tag, count)
        layout = adapter_layout(tag, count)
        self.manager.adapters.add(
            AdapterContent(digest_of(tag), layout, count, None, source, pages if tag % 2 else None)
        )

    def unload_adapter(self, name: int) -> None:
        """Also in use: leases go on with what they hold."""
        if self.shape.adapters and (found := self.adapters.pop(name % self.shape.adapters, None)):
            self.manager.adapters.remove(digest_of(found[0]))

    def break_source(self, name: int) -> None:
        if found := self.adapters.get(name):
            self.broken ^= {found[0]}

    def adapter_use(self, agent: int, pick: int, num_tokens: int) -> AdapterUse | None:
        """Mostly an agent's own adapter; in force from the start, or from anywhere on."""
        if not self.adapters or pick % 4 == 0:
            return None
        names = sorted(self.adapters)
        tag, count = self.adapters[names[agent % len(names)]]
        start = 0 if pick % 3 else pick % num_tokens
        self.manager.adapters.bind(agent, digest_of(tag))
        return AdapterUse(digest_of(tag), adapter_layout(tag, count), start)

    def prompt(self, agent: int, kind: str, pick: int, length: int) -> tuple[str, list[int]]:
        """A sharing domain and tokens: related to an earlier request's, or not."""
        fresh = self._random_tokens(length)
        if kind == "own":
            return DOMAINS[0], self.prefixes[agent] + fresh
        if kind == "template":
            return DOMAINS[0], self.templates[pick % len(self.templates)] + fresh
        if kind == "fresh" or not self.history:
            return DOMAINS[pick % 2], fresh
        domain, old = self.history[pick % len(self.history)]
        if kind == "repeat":
            return domain, list(old)
        if kind == "extend":
            return domain, old + fresh
        if kind == "elsewhere":
            return DOMAINS[domain == DOMAINS[0]], list(old)
        return domain, old[: 1 + pick % len(old)] + fresh

    def turn(self, agent: int, kind: str, pick: int, length: int, spare: int) -> None:
        """A request from its look-up to its release; it waits for copies a little, now and then."""
        before = len(self.held)
        self.acquire(agent, kind, pick, length, spare)
        for _ in range(pick % 4):
            if len(self.held) > before and self.held[-1].lease.is_ready:
                break
            self.land(20)
            self.poll()
            if len(self.held) == before:
                self.acquire(agent, kind, pick, length, spare)
        if len(self.held) <= before or not self.held[-1].lease.is_ready:
            return
        held = self.held[-1]
        while held in self.held and held.launched < len(held.tokens):
            self.launch(1 + pick % 20, 1 << held.slot)
            self.collect()
        while self.flights:
            self.collect()
        if held in self.held:
            self.release(self.held.index(held), True)

    def launch(self, count: int, mask: int) -> None:
        """One step: the next ``count`` tokens of the ready leases that ``mask`` names; at its end a
        sequence generates."""
        if len(self.flights) == 2:
            self.collect()
        size = self.shape.block_size
        work = []
        for held in self.held:
            if not held.lease.is_ready or not mask >> held.slot & 1:
                continue
            room = held.lease.num_blocks * size - held.launched
            take = min(count, room)
            while len(held.tokens) < held.launched + min(take, 1):
                held.tokens += self._random_tokens(1)
            take = min(take, len(held.tokens) - held.launched)
            if take > 0:
                work.append((held, held.launched, held.launched + take))
        if not work:
            return
        batch = self._batch(work)
        for held, _, end in work:
            held.launched = end
        ends = [(held, end) for held, _, end in work]
        self.flights.append((self.runner.launch(batch), ends))

    def run_device(self) -> None:
        """The device works; the host has not looked yet."""
        self.runner.run_next()

    def collect(self) -> None:
        if not self.flights:
            return
        step, ends = self.flights.pop(0)
        output = self.runner.collect(step)
        self.copying = {key: page for key, page in self.copying.items() if key[0] > step.step}
        for (held, end), bad in zip(ends, output.bad.tolist(), strict=True):
            if held not in self.held:
                continue
            if bad:
                assert held.slot in self.poisoned, f"slot {held.slot} read somebody's bad values"
                self._close(held, sound=0)
            else:
                held.done = end
                known = lineages_of(held.lineage_tokens(end))
                self.sound[held.domain].update(known.tolist())

    def poison(self, pick: int) -> None:
        """The next step of one lease gives values that are not finite."""
        if self.held:
            self.poisoned.add(self.held[pick % len(self.held)].slot)

    def grow(self, pick: int, more: int) -> None:
        held = self._pick(pick)
        if held is not None and held.lease.is_ready:
            room = self.shape.pages - held.lease.num_blocks
            self.manager.grow(held.lease, held.lease.num_blocks + min(more, room))

    def commit(self, pick: int) -> None:
        held = self._pick(pick)
        if held is not None and held.lease.is_ready:
            self.manager.commit(held.lease, held.token_bytes, held.done)

    def release(self, pick: int, keep: bool) -> None:
        """Keep what is sound, or (as after bad values) nothing; a loading lease is aborted."""
        held = self._pick(pick)
        if held is not None:
            ready = held.lease.is_ready
            self._close(held, sound=held.done if keep and ready else 0)

    def abort(self, again: bool) -> None:
        """Abort a lease whose loads have begun; ask for the same at once, where told."""
        for held in self.held:
            if not held.lease.is_ready:
                self.land(1)
                self._close(held, sound=0)
                if again:
                    self.acquire(held.agent, "repeat", len(self.history) - 1, 1, 0)
                return

    # -- the simulation and the link ----------------------------------------------------------

    def expect_agent(self, agent: int, at: float | None) -> None:
        self.manager.owners.set_next_use(agent, at)

    def advance(self, steps: int) -> None:
        self.manager.standing.now += steps
        self.manager.look_ahead.pace = Pace(0.001 * steps or None)

    def fork(self, parent: int, child: int) -> None:
        self.manager.owners.fork(parent, child)

    def drop_agent(self, agent: int) -> None:
        if all(held.agent != agent for held in self.held):
            self.manager.owners.drop(agent)

    def plan(self) -> None:
        self.manager.look_ahead.plan(0.0)

    def land(self, count: int) -> None:
        for _ in range(count):
            self.link.step()

    def fail_copy(self) -> None:
        self.link.failures = 1

    def poll(self) -> None:
        for lease in self.manager.poll():
            held = next(held for held in self.held if held.lease is lease)
            if lease.failed is not None:
                self.held.remove(held)
                self.poisoned.discard(held.slot)
                self.manager.fail(lease)

    def exhaust(self) -> None:
        """Ask for more and more until nothing is left to give."""
        for pick in range(MAX_LEASES):
            self.acquire(pick % AGENTS, "fresh", 1, self.shape.block_size * 2, pick)

    def quiesce(self) -> None:
        """Let everything go: every page is free and no ticket is alive."""
        self.link.failures = 0
        self.broken.clear()
        while self.flights:
            self.collect()
        while self.held:
            self.release(0, True)
        self.drain()
        self.check()
        for name in list(self.adapters):
            self.unload_adapter(name)
        self.manager.clear()
        self.check()
        manager, residency = self.manager, self.manager.residency
        for pool in (manager.device, manager.host):
            assert pool.num_free == pool.num_usable, f"{pool.num_used} pages are not free"
        assert not residency.transfers and not self.link.num_open, residency.transfers
        assert manager.tree.num_segments == 0, list(manager.tree)
        assert not residency.saving_pages and not residency.demand_waiting
        assert not manager.loading_pages

    def drain(self) -> None:
        for _ in range(10_000):
            if not self.link.num_open:
                return
            self.link.wait(1.0)
            self.poll()
        raise AssertionError(f"{self.link.num_open} tickets do not end")

    # -- what must hold -----------------------------------------------------------------------

    def check(self) -> None:
        check_integrity(self.manager, [held.lease for held in self.held])
        self._check_contents()

    def _check_contents(self) -> None:
        """Each segment on each tier, and each lease through its row's pages, reads back its
        tags."""
        device, host = _Reader(self.device, self.shape), _Reader(self.host, self.shape)
        for segment in self.manager.tree:
            if segment.is_adapter:
                self._check_adapter(segment)
                continue
            if segment.is_tail and segment.device[0] in self.copying.values():
                continue  # written by a step in flight: right for whoever comes after it
            tokens, start = full_tokens(segment, self.shape.block_size)
            device.add(segment, segment.device[: segment.ready], tokens, start)
            host.add(segment, segment.host[: segment.saved].tolist(), tokens, start)
        for held in self.held:
            if held.lease.is_ready:
                pages = [p for s in reversed(lineage(held.lease.end)) for p in s.device]
                done = held.done
                if held.lease.copies or any(h is held for _, ends in self.flights for h, _ in ends):
                    done = min(done, held.lease.num_shared * self.shape.block_size)
                tokens = held.lineage_tokens(done)
                device.add(held.lease, pages + held.lease.private, tokens, 0)
        device.check("device")
        host.check("host")

    def _check_adapter(self, segment: Segment) -> None:
        """Its pages on both tiers hold it, and nothing but it."""
        tag = int.from_bytes(segment.mark, "little")
        want = adapter_pages(tag, segment.num_blocks, self.device.shape[1])
        on_device, on_host = segment.device[: segment.ready], segment.host[: segment.saved]
        assert (self.device[on_device] == want[: len(on_device)]).all(), f"{segment} on the device"
        assert (self.host[on_host] == want[: len(on_host)]).all(), f"{segment} on the host"

    # -- parts --------------------------------------------------------------------------------

    def _pick(self, pick: int) -> Held | None:
        return self.held[pick % len(self.held)] if self.held else None

    def _close(self, held: Held, *, sound: int) -> None:
        self.held.remove(held)
        self.poisoned.discard(held.slot)
        self.history = [*self.history[-11:], (held.domain, held.tokens)]
        self.manager.release(held.lease, held.token_bytes[: 4 * sound], sound)

    def _random_tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(3) for _ in range(max(1, count))]

    def _batch(self, work: list[tuple[Held, int, int]]) -> Batch:
        counts = [end - start for _, start, end in work]
        copies = []
        for held, _, _ in work:
            copies += held.lease.copies
            held.lease.copies = []
        rows, cols, pages = self.manager.table.take_changes()
        step = self.num_launched
        self.copying |= {(step, index): page for index, (_, page) in enumerate(copies)}
        self.num_launched += 1
        self.manager.residency.last_launched = step
        num = len(work)
        return Batch(
            step=step,
            token_ids=np.concatenate([np.array(h.tokens[a:b], np.int32) for h, a, b in work]),
            positions=np.concatenate([np.arange(a, b, dtype=np.int32) for _, a, b in work]),
            query_start=np.cumsum([0, *counts]).astype(np.int32),
            rows=np.array([held.lease.row for held, _, _ in work], np.int32),
            slots=np.array([held.slot for held, _, _ in work], np.int32),
            sample=np.ones(num, np.bool_),
            sampling=SamplingBatch(
                np.zeros(num, np.float32),
                np.zeros(num, np.int32),
                np.ones(num, np.float32),
                np.zeros(num, np.uint64),
            ),
            table_rows=rows,
            table_cols=cols,
            table_pages=pages,
            page_copies=np.array(copies, np.int32).reshape(-1, 2),
            adapters=self._adapters([held for held, _, _ in work]),
        )

    def _adapters(self, work: list[Held]) -> AdapterBatch | None:
        columns = np.array(
            [
                (held.lease.adapter_row, held.use.layout, held.use.start) if held.use else (0, 0, 0)
                for held in work
            ],
            np.int32,
        )
        return AdapterBatch(*columns.T) if columns[:, 0].any() else None


class _Reader:
    """Gathers what is to be read back from one pool, and compares it in one go."""

    def __init__(self, pages: np.ndarray, shape: Shape) -> None:
        self._tags = view_tags(pages, shape.block_size)
        self._size = shape.block_size
        self._parts: list[tuple[object, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, owner: object, pages: list[int], tokens: np.ndarray, start: int) -> None:
        """``pages`` hold ``tokens[start:]``, as far as both go."""
        count = min(len(pages) * self._size, len(tokens) - start)
        if count > 0:
            known = lineages_of(tokens)[start : start + count]
            places = (np.array(pages)[:, None] * self._size + np.arange(self._size)).ravel()
            positions = np.arange(start, start + count)
            self._parts.append((owner, places[:count], tokens[start:][:count], positions, known))

    def check(self, tier: str) -> None:
        if not self._parts:
            return
        columns = [np.concatenate(part) for part in list(zip(*self._parts, strict=True))[1:]]
        if self._agree(*columns):
            return
        for owner, *part in self._parts:
            assert self._agree(*part), f"{tier} copy of {owner} differs from its tokens {part[1]}"

    def _agree(
        self, places: np.ndarray, tokens: np.ndarray, positions: np.ndarray, known: np.ndarray
    ) -> bool:
        return are_tags_of(
            self._tags[places], tokens.astype(np.uint64), positions.astype(np.uint64), known
        )


def full_tokens(segment: Segment, block_size: int) -> tuple[np.ndarray, int]:
    """The tokens from the root to the end of ``segment``, as tags keep them, and where its own
    begin."""
    path = b""
    use = None
    for node in reversed(lineage(segment)):
        if node.mark:
            start = len(path) // 4 + int.from_bytes(node.mark[-2:], "little")
            assert use is None and int.from_bytes(node.mark[-2:], "little") < block_size
            use = AdapterUse(node.mark[:-2], 0, start)
        path += node.tokens
    tokens = np.frombuffer(path, np.int32).astype(np.int64)
    return coded(tokens, use), (len(path) - len(segment.tokens)) // 4


def digest_of(tag: int) -> bytes:
    return tag.to_bytes(16, "little")


def coded(tokens: np.ndarray, use: AdapterUse | None) -> np.ndarray:
    """``tokens`` as tags keep them under ``use``."""
    if use is None:
        return tokens
    return under_adapter(tokens, int.from_bytes(use.digest, "little"), use.start)


KINDS = ("own", "own", "own", "own", "extend", "repeat", "share", "template", "fresh", "elsewhere")


def random_walk(world: World, rng: random.Random, steps: int) -> int:
    """Drive ``world`` at random, checking after every step; returns the operations done."""

    def some(limit: int) -> int:
        return rng.randrange(limit)

    acts: list[tuple[float, Callable[[], None]]] = [
        (18, lambda: world.acquire(some(AGENTS), rng.choice(KINDS), some(1000), some(9), some(9))),
        (30, lambda: world.turn(some(AGENTS), rng.choice(KINDS), some(1000), some(9), some(9))),
        (9, lambda: world.abort(some(3) > 0)),
        (14, lambda: world.launch(1 + some(12), some(64))),
        (5, world.run_device),
        (10, world.collect),
        (6, lambda: world.grow(some(9), some(4))),
        (6, lambda: world.commit(some(9))),
        (16, lambda: world.release(some(9), some(5) > 0)),
        (6, lambda: world.expect_agent(some(AGENTS), rng.choice([None, -1, 1, 2, 5, FAR]))),
        (3, lambda: world.advance(some(4))),
        (4, world.plan),
        (9, lambda: world.land(some(12))),
        (14, world.poll),
        (2, world.fail_copy),
        (1, lambda: world.fork(some(AGENTS), some(AGENTS))),
        (0.5, lambda: world.drop_agent(some(AGENTS))),
        (0.3, world.exhaust),
        (3, lambda: world.poison(some(9))),
        (0.3, world.quiesce),
    ]
    if world.shape.adapters:
        acts += [
            (9, lambda: world.load_adapter(some(9), some(9))),
            (3, lambda: world.unload_adapter(some(9))),
            (2, lambda: world.break_source(some(world.shape.adapters))),
        ]
    weights = [weight for weight, _ in acts]
    for act in rng.choices([act for _, act in acts], weights, k=steps):
        act()
        world.check()
    world.quiesce()
    return steps
