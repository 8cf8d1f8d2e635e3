"""Weights in the pools: parts on consecutive pages, made by moving idle pages, whose content stays
what it was."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from scalesim.core import Bytes2D
from scalesim.errors import ModelError
from scalesim.memory.audit.integrity import check_integrity
from scalesim.memory.compaction import Compaction
from scalesim.memory.eviction.policies import policy_named
from scalesim.memory.lease import Lease
from scalesim.memory.leases.weights import WeightsContent, weights_spec
from scalesim.memory.links.link import InMemorySource
from scalesim.memory.manager import MemoryManager
from scalesim.memory.pools.page_access import ArrayPages
from scalesim.memory.pools.page_pool import PagePool, runs
from scalesim.memory.prefetch.config import PlannerConfig
from scalesim.memory.tree.next_use import NextUse
from scalesim.memory.tree.page_runs import PageRuns
from scalesim.memory.tree.prefix_tree import TEXT
from scalesim.memory.tree.segment import Segment
from scalesim.memory.tree.walk import lineage
from tests.memory.copying_link import CopyingLink

SIZE, PAGE = 4, 16
RUNS = (PageRuns((3,)), PageRuns((2, 2)), PageRuns((4, 1, 1)))
AGENTS = 6
POLICIES = ("deadline", "lru-swap", "lru-recompute")


def content_of(model: int) -> WeightsContent:
    digest = bytes([model]) * 16
    rows = np.random.default_rng(model).integers(0, 256, (sum(RUNS[model]), PAGE), np.uint8)
    return WeightsContent(digest, RUNS[model], InMemorySource(rows), rows if model % 2 else None)


def mark_of(model: int) -> bytes:
    return b"model:" + bytes([model]) * 16


def kv(model: int, tokens: bytes) -> Bytes2D:
    """The page of the last block of ``tokens``: a digest of all that it depends on."""
    return np.frombuffer(xxhash.xxh3_128_digest(mark_of(model) + tokens), np.uint8)


@dataclass(eq=False)
class Open:
    agent: int
    model: int
    tokens: bytes
    lease: Lease


class Walk:
    """Random calls, hints and ticks of agents, each of which has one of the models."""

    def __init__(self, seed: int, policy: str, pages: int = 16, host: int = 12) -> None:
        self.rng = random.Random(seed)
        self.device = np.zeros((pages + 1, PAGE), np.uint8)
        self.host = np.zeros((max(1, host), PAGE), np.uint8)
        self.link = CopyingLink(self.device, self.host, PAGE * 20.0)
        self.memory = MemoryManager(
            block_size=SIZE, page_bytes=PAGE, device_pages=pages + 1, host_pages=host, num_rows=12,
            policy=policy_named(policy), link=self.link, planner_config=PlannerConfig(),
            move_pages=ArrayPages(self.device, self.host).move,
        )  # fmt: skip
        self.contents = [content_of(model) for model in range(len(RUNS))]
        for content in self.contents:
            self.memory.add_weights(content)
        for agent in range(AGENTS):
            self.memory.bind_weights(agent, self.contents[agent % len(RUNS)].digest)
        self.table = np.zeros((12, pages + 1), np.int32)
        self.open: list[Open] = []
        self.step, self.now, self.num_done = 0, 0.0, 0

    def run(self, count: int) -> None:
        for _ in range(count):
            self.rng.choice(
                (self.call, self.call, self.finish, self.finish, self.hint, self.move)
            )()
            self.check()
        while self.open:
            self.finish(wait=True)
            self.check()

    def call(self) -> None:
        agent = self.rng.randrange(AGENTS)
        if len(self.open) == 3 or any(opened.agent == agent for opened in self.open):
            return
        model = agent % len(RUNS)
        length = 1 + self.rng.randrange(5 * SIZE)
        prefix = [agent if self.rng.random() < 0.7 else 99] * length
        tokens = np.array(prefix, np.int32).tobytes()
        lease = self.memory.acquire(
            agent,
            tokens,
            -(-length // SIZE),
            attachments=(weights_spec(self.contents[model].digest, 1 + model, SIZE),),
        )
        if lease is not None:
            self.open.append(Open(agent, model, tokens, lease))

    def finish(self, wait: bool = False) -> None:
        """Compute and release a call whose state is there."""
        self.poll()
        while wait and not any(opened.lease.is_ready for opened in self.open):
            self.link.wait(10.0)
            self.poll()
        ready = [opened for opened in self.open if opened.lease.is_ready]
        if not ready:
            return
        done = self.rng.choice(ready)
        self.open.remove(done)
        assert done.lease.failed is None
        self.compute(done)
        self.step += 1
        self.memory.launched(self.step, 1)
        done.lease.take_copies()
        self.memory.release(done.lease, done.tokens, len(done.tokens) // 4)
        self.num_done += 1

    def compute(self, done: Open) -> None:
        """Weights and shared KV are read where the block table says; new KV is written to the
        lease's pages."""
        (attachment,) = done.lease.attachments
        rows, columns, pages = self.memory.take_table_changes()
        self.table[rows, columns] = pages
        heads = self.table[attachment.row, : len(RUNS[done.model])].tolist()
        parts = [
            self.device[head : head + length]
            for head, length in zip(heads, RUNS[done.model], strict=True)
        ]
        source = self.contents[done.model].source.read()
        assert (np.concatenate(parts) == source).all(), f"model {done.model} lies elsewhere"
        for index, page in enumerate(self.table[done.lease.row, : done.lease.num_shared]):
            tokens = done.tokens[: (index + 1) * SIZE * 4]
            assert (self.device[page] == kv(done.model, tokens)).all(), f"block {index} of {done}"
        for index, page in enumerate(done.lease.private, start=done.lease.num_shared):
            self.device[page] = kv(done.model, done.tokens[: (index + 1) * SIZE * 4])

    def poll(self) -> None:
        self.memory.poll()

    def hint(self) -> None:
        agent = self.rng.randrange(AGENTS)
        self.memory.hint([(agent, self.now + self.rng.randrange(4))])

    def move(self) -> None:
        if self.rng.random() < 0.3:
            self.now += 1.0
            self.memory.tick(self.now, 0.5)
        self.memory.plan(self.now)
        self.link.wait(0.1)
        self.poll()

    # -- what must hold -----------------------------------------------------------------------

    def check(self) -> None:
        check_integrity(self.memory, [opened.lease for opened in self.open])
        for segment in self.memory.tree:
            if segment.runs:
                self.check_runs(segment)
            elif not segment.is_partial:
                self.check_kv(segment)

    def check_runs(self, segment: Segment) -> None:
        model = segment.mark[0]
        valid = list(segment.device)[: segment.device.valid]
        assert (self.device[valid] == self.contents[model].source.read()[: len(valid)]).all()
        first = 0
        for length in segment.runs:
            part = list(segment.device)[first : first + length]
            assert len(part) in (0, length) and len(runs(part)) <= 1, (segment, part)
            first += length

    def check_kv(self, segment: Segment) -> None:
        path = lineage(segment)[::-1]
        model = path[0].mark[-1]
        above = b"".join(node.tokens for node in path[:-1])
        for run, pool in ((segment.device, self.device), (segment.host, self.host)):
            for block in range(run.valid):
                tokens = above + segment.tokens[: (block + 1) * SIZE * 4]
                assert (pool[run[block]] == kv(model, tokens)).all(), (segment, block)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(6))
def test_walks(policy: str, seed: int) -> None:
    walk = Walk(seed, policy)
    walk.run(400)
    assert walk.num_done > 30
    counters = walk.memory.counters
    assert counters.evicted_pages > 50
    walk.memory.clear()
    while walk.memory.is_moving:
        walk.link.wait(10.0)
        walk.poll()
    walk.memory.clear()
    assert walk.memory.num_free_pages == walk.memory.num_pages


def test_walks_move_pages() -> None:
    """The walks above do what they are there for."""
    moved = 0
    for seed in range(6):
        walk = Walk(seed, "deadline")
        walk.run(400)
        moved += walk.memory.counters.compacted_pages
    assert moved > 5


@given(st.integers(0, 2**32), st.sampled_from(POLICIES), st.integers(9, 20), st.integers(0, 20))
@settings(max_examples=40)
def test_more_walks(seed: int, policy: str, pages: int, host: int) -> None:
    Walk(seed, policy, pages, host).run(120)


@given(st.integers(0, 2**32), st.integers(2, 64))
@settings(max_examples=60)
def test_a_claim_takes_these_pages_and_no_others(seed: int, num_pages: int) -> None:
    rng, pool = random.Random(seed), PagePool(num_pages)
    taken: set[int] = set()
    for _ in range(40):
        free = np.flatnonzero(pool.free_mask()).tolist()
        if rng.random() < 0.5 and free:
            wanted = rng.sample(free, rng.randint(1, len(free)))
            pool.claim(sorted(wanted))
            taken |= set(wanted)
        elif taken:
            given_back = rng.sample(sorted(taken), rng.randint(1, len(taken)))
            pool.free(given_back)
            taken -= set(given_back)
        pool.check()
        assert set(np.flatnonzero(pool.free_mask())) == set(range(num_pages)) - taken
    if taken:
        with pytest.raises(AssertionError, match="not free"):
            pool.claim([min(taken)])


def test_weights_go_by_the_soonest_of_any_number_of_agents() -> None:
    """However many agents share a model, its weights leave last where one of them is next."""
    walk = Walk(0, "deadline", pages=9, host=24)
    memory = walk.memory
    crowd = [f"many {number}" for number in range(40)]
    for agent in crowd:
        memory.bind_weights(agent, walk.contents[0].digest)
    memory.hint([(agent, 50.0 + at) for at, agent in enumerate(crowd)])
    memory.hint([(1, 9.0)])
    first, second = (memory.weights.segment(walk.contents[model].digest) for model in (0, 1))
    for soonest, expected in ((crowd[30], (3.0, 9.0)), (crowd[31], (2.0, 9.0))):
        memory.hint([(soonest, expected[0])])
        uses = [memory.ranking.next_use(segment).time for segment in (first, second)]
        assert uses == [expected[0], expected[1]]
    memory.hint([(crowd[31], None), (crowd[30], None)])
    assert memory.ranking.next_use(first).time == 50.0
    memory.forget(crowd[0])
    assert memory.ranking.next_use(first).time == 51.0
    memory.bind_weights(crowd[1], walk.contents[1].digest)
    assert memory.ranking.next_use(first).time == 52.0


def test_a_request_alone_always_gets_its_weights() -> None:
    """Its own KV lies anywhere between, pinned: it is moved out of the way."""
    for seed in range(20):
        walk = Walk(seed, "deadline", pages=10, host=0)
        memory, size = walk.memory, 4 * SIZE * 4
        for agent in (2, 5):  # a model of six pages and four blocks of KV
            tokens = np.full(4 * SIZE, agent, np.int32).tobytes()
            for _ in range(3):
                spec = weights_spec(walk.contents[2].digest, 3, SIZE)
                lease = memory.acquire(agent, tokens, 4, attachments=(spec,))
                assert lease is not None, "nothing else runs, and no copy is under way"
                while not lease.is_ready:
                    walk.link.wait(10.0)
                    walk.poll()
                walk.compute(Open(agent, 2, tokens, lease))
                lease.take_copies()
                memory.release(lease, tokens, size // 4)
                walk.check()
                scattered = memory.device.allocate(memory.num_free_pages) or []
                memory.device.free(walk.rng.sample(scattered, len(scattered)))


def test_weights_come_in_parts_where_there_is_no_room_for_all() -> None:
    """One run of two pages is free, and two single pages: one part of the weights is loaded ahead,
    no request begins beside that load, and the other part follows as soon as there is a run."""
    walk = Walk(0, "deadline", pages=9)
    memory, device = walk.memory, walk.memory.device
    while memory.is_moving:  # to the host
        walk.link.wait(10.0)
        walk.poll()
    others = device.allocate(9)
    assert others is not None
    device.free([1, 2, 4, 6])
    weights = memory.weights.segment(walk.contents[1].digest)
    memory.hint([(1, 1.0)])
    memory.plan(0.0)
    assert list(weights.device) == [1, 2] and memory.is_moving
    memory.plan(0.1)
    spec, tokens = weights_spec(weights.mark, 2, SIZE), np.zeros(2, np.int32).tobytes()
    device.free([3, 5, 7, 8, 9])
    assert memory.acquire(1, tokens, 1, attachments=(spec,)) is None
    memory.poll()
    while memory.is_moving:
        walk.link.wait(10.0)
        walk.poll()
    memory.plan(1.0)
    walk.link.wait(10.0)
    walk.poll()
    assert weights.is_ready
    walk.check()


def test_weights_without_time_wait_for_no_more_pages_than_saves_will_free() -> None:
    """A page of KV that is used last is being saved, and three pages are missing: two leave now, so
    that a part of the weights is loaded at once; the third is the saved one."""
    walk = Walk(0, "deadline", pages=9, host=24)
    memory = walk.memory
    settle(walk)
    for agent, blocks in (("near", 4), ("far", 1)):
        tokens = np.full(blocks * SIZE, blocks, np.int32).tobytes()
        lease = memory.acquire(agent, tokens, blocks)
        assert lease is not None
        memory.release(lease, tokens, blocks * SIZE)
    near, far = sorted(memory.tree.root(TEXT).children.values(), key=lambda kv: -kv.num_blocks)
    memory.residency.start_save(near)
    settle(walk)
    assert memory.device.allocate(3) is not None
    weights = memory.weights.segment(walk.contents[1].digest)
    memory.hint([(1, 1.0), ("near", 5.0), ("far", 7.0)])
    memory.residency.start_save(far)
    memory.timing.tick_s = 10.0
    memory.plan(0.0)
    assert not len(weights.device), "there is time to wait"
    memory.timing.tick_s = 0.1
    memory.plan(0.0)
    assert [len(kv.device) for kv in (weights, near, far)] == [2, 2, 1]
    settle(walk)
    memory.plan(1.0)
    settle(walk)
    assert weights.is_ready and [len(kv.device) for kv in (near, far)] == [2, 0]


def settle(walk: Walk) -> None:
    while walk.memory.is_moving:
        walk.link.wait(10.0)
        walk.poll()


def test_kv_comes_with_the_weights_that_a_request_waits_for() -> None:
    """Computing the KV would be sooner than loading it, but not while the weights are on their
    way: until then nothing can be computed."""
    walk = Walk(0, "deadline", pages=9, host=24)
    memory, timing = walk.memory, walk.memory.timing
    spec, tokens = weights_spec(walk.contents[1].digest, 2, SIZE), np.ones(9, np.int32).tobytes()

    def asked() -> Lease:
        lease = memory.acquire(1, tokens, 3, attachments=(spec,))
        assert lease is not None
        return lease

    opened = Open(1, 1, tokens, asked())
    while not opened.lease.is_ready:
        walk.link.wait(10.0)
        walk.poll()
    walk.compute(opened)
    memory.release(opened.lease, tokens, 9)
    while (pages := memory.residency.take(memory.num_pages)) is None:
        walk.link.wait(10.0)
        walk.poll()
    memory.device.free(pages)
    for number in range(3):
        timing.launched(number, 64)
        timing.begin_iteration(100.0 * number)
        timing.begin_iteration(100.0 * number + 0.001)
    assert memory.residency.load_or_recompute.num_worth_loading(2, SIZE) == 0
    assert asked().num_cached == 8


def test_a_run_is_consecutive_in_whatever_order_its_pages_were_freed() -> None:
    memory, rng = Walk(0, "deadline").memory, random.Random(0)
    device, num_found = memory.device, 0
    for _ in range(200):
        others = device.allocate(memory.num_pages) or []
        freed = rng.sample(others, rng.randint(1, len(others)))
        device.free(freed)
        length = rng.randint(1, len(freed))
        run = memory.residency.compaction.take_run(length)
        if run is not None:
            assert run == list(range(run[0], run[0] + length))
            num_found += 1
        device.free([page for page in others if page not in freed] + (run or []))
    assert 50 < num_found < 200


def one_cached_page(page: int, policy: str) -> MemoryManager:
    """Nine pages, which cannot be moved, and all free but one, which agent 0 has left cached."""
    device = np.zeros((10, PAGE), np.uint8)
    memory = MemoryManager(
        block_size=SIZE, page_bytes=PAGE, device_pages=10, host_pages=0, num_rows=4,
        policy=policy_named(policy), link=CopyingLink(device, device, PAGE * 20.0),
    )  # fmt: skip
    others = memory.device.allocate(9)
    assert others is not None
    memory.device.free([page])
    tokens = np.zeros(SIZE, np.int32).tobytes()
    lease = memory.acquire(0, tokens, 1)
    assert lease is not None
    memory.release(lease, tokens, SIZE)
    memory.device.free([other for other in others if other != page])
    return memory


def test_runs_are_looked_for_anew_once_more_was_evicted() -> None:
    """One cached page lies so that two runs of four fit only without it, and the first was found
    where the second could not lie beside it."""
    memory = one_cached_page(7, "lru-recompute")
    pages = memory.residency.take(8, runs=[(0, 4), (4, 4)])
    assert pages is not None
    assert all(len(runs(part)) == 1 for part in (pages[:4], pages[4:]))


@pytest.mark.parametrize(("next_use", "evicted"), [(9.0, True), (1.0, False)])
def test_what_is_used_later_makes_way_for_a_run_though_pages_are_free(
    next_use: float, evicted: bool
) -> None:
    """One cached page, which cannot be moved, has four free pages on either side: for five that
    have to be consecutive it leaves, unless it is used as soon."""
    memory = one_cached_page(5, "deadline")
    memory.hint([(0, next_use)])
    soon = NextUse(1.0, 0, 0.0, 0)
    pages = memory.residency.take_first(5, ahead_of=soon, runs=[(0, 5)])
    assert len(pages) == (5 if evicted else 0) and len(runs(pages)) <= 1
    again = memory.residency.take_first(5, ahead_of=soon, runs=[(0, 5)])
    assert not again and memory.device.num_free == (4 if evicted else 8)


def test_unknown_weights_are_refused() -> None:
    walk = Walk(0, "deadline")
    with pytest.raises(ModelError, match="was added"):
        walk.memory.acquire(0, b"\0" * 16, 1, attachments=(weights_spec(b"x" * 16, 9, SIZE),))


# -- planted bugs: what the walks have to see -----------------------------------------------------


def squeezed(seed: int) -> None:
    """A request whose KV lies here and there is open while another's weights need a run."""
    walk = Walk(seed, "lru-recompute", pages=15, host=0)
    device = walk.memory.device

    def asked(agent: int, blocks: int) -> Open | None:
        tokens, model = np.full(blocks * SIZE, agent, np.int32).tobytes(), agent % len(RUNS)
        spec = weights_spec(walk.contents[model].digest, 1 + model, SIZE)
        lease = walk.memory.acquire(agent, tokens, blocks, attachments=(spec,))
        while lease is not None and not lease.is_ready:
            walk.link.wait(10.0)
            walk.poll()
        return None if lease is None else Open(agent, model, tokens, lease)

    others = device.allocate(walk.memory.num_free_pages) or []
    first = walk.rng.randrange(len(others) - 2)
    mine = others[first : first + 3]  # for the weights
    mine += walk.rng.sample([page for page in others if page not in mine], 4)
    device.free(mine)
    opened = asked(0, 4)
    assert opened is not None
    walk.compute(opened)
    walk.memory.release(opened.lease, opened.tokens, 4 * SIZE)
    device.free([page for page in others if page not in mine])
    opened = asked(0, 4)
    assert opened is not None and opened.lease.num_shared == 3
    if (other := asked(2, 1)) is not None:
        walk.compute(other)
    walk.compute(opened)


def test_moving_pages_that_somebody_reads_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compaction that does not look at pins moves pages under a lease."""
    for seed in range(20):
        squeezed(seed)

    def movable(self: Compaction, held: object) -> dict[int, tuple[Segment, int]]:
        return {
            page: (segment, block)
            for segment in self.tree
            if not (segment.is_moving or segment.runs)
            for block, page in enumerate(segment.device)
        }

    monkeypatch.setattr(Compaction, "movable", movable)
    with pytest.raises(AssertionError, match="block"):
        for seed in range(20):
            squeezed(seed)


def test_a_run_that_is_cut_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are evicted page by page come back as a part in two pieces."""
    monkeypatch.setattr(PageRuns, "start_of", lambda self, block: block)
    with pytest.raises(AssertionError):
        for seed in range(30):
            Walk(seed, "deadline").run(400)


def test_weights_that_are_stale_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A move that is told of, and not made, leaves other content on the pages."""
    monkeypatch.setattr(ArrayPages, "move", lambda self, sources, targets: None)
    with pytest.raises(AssertionError):
        for seed in range(30):
            Walk(seed, "deadline").run(400)
