"""The disk below the host, case by case: what is written to it, and what is read when."""

from __future__ import annotations

from random import Random

import pytest

from scalesim.memory.audit.integrity import check_integrity
from scalesim.memory.eviction.lazy_heap import LazyHeap
from scalesim.memory.eviction.policies import policy_named
from scalesim.memory.links.link import Copies, Direction, Link, LinkError
from scalesim.memory.links.virtual_link import VirtualLink
from scalesim.memory.manager import MemoryManager
from scalesim.memory.prefetch.config import PlannerConfig
from scalesim.memory.prefetch.stages import Stages
from scalesim.memory.tree.next_use import NextUse
from scalesim.memory.tree.owner import AgentState
from scalesim.memory.tree.prefix_tree import TEXT
from tests.memory.test_residency import PAGE, RATE, SIZE, calls, settle, tokens, turn

DISK_RATE = RATE / 4.0
SOON = NextUse(1.0, 0, 0.0, 0)


class FailingReads(VirtualLink):
    """A virtual link whose next reads from the disk fail as often as it is told."""

    failures = 0

    def poll(self) -> list[tuple[int, Exception | None]]:
        ended = super().poll()
        return [(ticket, self.errors.pop(ticket, error)) for ticket, error in ended]

    def submit(self, copies: Copies, *rest: object, **named: object) -> list[int]:  # type: ignore[override]
        tickets = super().submit(copies, *rest, **named)  # type: ignore[arg-type]
        if copies.direction == "up" and self.failures:
            self.failures -= 1
            self.errors[tickets[-1]] = LinkError("told to fail")
        return tickets

    @property
    def errors(self) -> dict[int, Exception | None]:
        return self.__dict__.setdefault("kept", {})


def manager(
    pages: int, host: int, disk: int, policy: str = "deadline", link: Link | None = None
) -> MemoryManager:
    return MemoryManager(
        block_size=SIZE,
        page_bytes=PAGE,
        device_pages=pages + 1,
        host_pages=host,
        disk_pages=disk,
        num_rows=9,
        policy=policy_named(policy),
        link=link or FailingReads(PAGE, RATE, DISK_RATE),
        planner_config=PlannerConfig(clean_fraction=0.5),
    )


def where(memory: MemoryManager, agent: int) -> tuple[int, int, int]:
    """Blocks of ``agent`` on the device, the host and the disk."""
    path = memory.tree.match(memory.tree.root(TEXT), tokens(agent, 99), 24)
    runs = [(s.device.valid, s.host.valid, s.disk.valid) for s, _ in path]
    return sum(a for a, _, _ in runs), sum(b for _, b, _ in runs), sum(c for _, _, c in runs)


def work(memory: MemoryManager, times: int = 12) -> None:
    """Plan and let copies end until nothing moves any more."""
    for _ in range(times):
        memory.plan(0.0)
        settle(memory)
        check_integrity(memory)


def town(memory: MemoryManager, agents: int, blocks: int = 2) -> None:
    """``agents`` speak once each, in order, and are to speak again in that order."""
    for agent in range(agents):
        turn(memory, agent, blocks)
        memory.hint([(agent, 100.0 + agent)])
        work(memory)


def on_disk_alone(memory: MemoryManager, agents: int) -> list[int]:
    return [agent for agent in range(agents) if where(memory, agent) == (0, 0, 2)]


def test_what_has_no_room_on_the_host_goes_to_the_disk() -> None:
    memory = manager(4, 4, 40)
    town(memory, 8)
    assert memory.counters.dropped_pages == 0
    assert all(max(where(memory, agent)) == 2 for agent in range(8))
    assert on_disk_alone(memory, 8)
    kept = memory.disk.num_used
    for agent in range(8):
        memory.forget(agent)
    settle(memory)
    memory.poll()
    assert kept and memory.disk.num_used == memory.host.num_used == 0


@pytest.mark.parametrize("policy", ["deadline", "lru-swap"])
def test_a_request_gets_from_the_disk_what_is_there(policy: str) -> None:
    """Through the host, each page once, and the copy on the disk stays."""
    memory = manager(4, 4, 40, policy)
    town(memory, 8)
    agent = on_disk_alone(memory, 8)[-1]
    before = memory.counters.recalled_pages
    lease = turn(memory, agent, 2)
    assert lease.num_cached == 2 * SIZE and lease.num_host_blocks == 2
    assert memory.counters.recalled_pages == before + 2
    assert where(memory, agent)[2] == 2
    assert memory.counters.dropped_pages == 0


def test_what_is_needed_next_is_staged_and_then_loaded() -> None:
    memory = manager(4, 4, 40)
    town(memory, 8)
    agent = on_disk_alone(memory, 8)[0]
    memory.hint([(agent, 0.0)])  # before all others
    work(memory)
    assert where(memory, agent)[0] == 2
    assert memory.counters.staged_pages >= 2 and memory.counters.recalled_pages == 0
    assert turn(memory, agent, 2).num_host_blocks == 0


def host_blocks(memory: MemoryManager, agent: int) -> int:
    """Blocks of ``agent`` that are on the host, or on their way there."""
    path = memory.tree.match(memory.tree.root(TEXT), tokens(agent, 99), 24)
    return sum(len(segment.host) for segment, _ in path)


def test_staging_costs_no_copy_that_is_used_sooner() -> None:
    """Whatever agents speak and are told: a plan that stages takes host copies only of those that
    are used at a later move of the clock than what is staged, on the device too or not."""
    agents, num_checked = 12, 0
    for seed in range(12):
        draw = Random(seed)
        memory = manager(8, 8, 60)
        town(memory, agents)
        next_uses = {agent: 100.0 + agent for agent in range(agents)}
        for now in range(1, 40):
            memory.tick(float(now), 0.0)  # ticks pass at once: every window is open
            for agent in draw.sample(range(agents), 2):
                next_uses[agent] = now + float(draw.randint(0, 9))
                turn(memory, agent, 2)
                memory.hint([(agent, next_uses[agent])])
            for _ in range(4):
                before = {agent: host_blocks(memory, agent) for agent in range(agents)}
                saved = memory.counters.saved_pages
                memory.plan(0.0)
                gained = {agent: host_blocks(memory, agent) - before[agent] for agent in before}
                staged = [next_uses[agent] for agent in gained if gained[agent] > 0]
                if staged and memory.counters.saved_pages == saved:
                    lost = [next_uses[agent] for agent in gained if gained[agent] < 0]
                    assert all(time > min(staged) for time in lost), (seed, now, gained, next_uses)
                    num_checked += bool(lost)
                settle(memory)
                check_integrity(memory)
    assert num_checked > 20


def test_a_read_that_lacks_room_gets_what_is_used_later() -> None:
    """All that could leave the host without loss is needed now too, so what is used later has to
    be written to the disk first, although half of the host is clean."""
    memory = manager(4, 8, 60)
    town(memory, 12)
    clean = [agent for agent in range(12) if min(where(memory, agent)[1:]) == 2]
    later = [agent for agent in range(12) if where(memory, agent)[2] == 0]
    assert len(later) == 2 and memory.ranking.num_clean == 4
    agent = on_disk_alone(memory, 12)[0]
    memory.hint([(other, 0.0) for other in clean])
    stages = staging(memory, memory.owners.agent(agent))
    for _ in range(3):
        stages.plan((), lambda agent, count: 0.0)
        stages.spill(0.5)
        settle(memory)
    assert where(memory, agent) == (0, 2, 2)
    assert any(where(memory, other)[2] for other in later)
    assert memory.counters.dropped_pages == 0
    check_integrity(memory)


@pytest.mark.parametrize(("mine", "theirs"), [(150.0, 900.0), (900.0, 150.0)])
def test_what_leaves_the_device_stays_on_the_host_if_it_is_used_sooner(
    mine: float, theirs: float
) -> None:
    """Also what is on the disk, which is slower than the host."""
    memory = manager(4, 8, 60)
    town(memory, 12)
    assert where(memory, 11) == (2, 2, 2) and where(memory, 1) == (0, 2, 2)
    [(on_device, _)] = memory.tree.match(memory.tree.root(TEXT), tokens(11, 99), 24)
    [(below, _)] = memory.tree.match(memory.tree.root(TEXT), tokens(5, 99), 24)
    memory.residency.drops.shed(memory.tiers.host, on_device)
    memory.residency.disk.start_stage([(below, 2)], NextUse(0.0, 0, 0.0, 0))  # in its place
    settle(memory)
    memory.hint([(11, mine), (1, theirs), (5, theirs)])
    assert memory.host.num_free == 0
    turn(memory, 12, 2)
    assert where(memory, 11)[0] < 2 and where(memory, 11)[2] == 2
    stays = mine < theirs
    assert where(memory, 11)[1] == (2 if stays else 0)
    assert memory.counters.dropped_pages == 0


def test_each_edge_has_a_window_of_its_own() -> None:
    """Of an agent that is needed later, the read from the slow disk starts, and the load over the
    fast link does not yet."""
    memory = manager(4, 8, 40)
    town(memory, 8)
    agent = on_disk_alone(memory, 8)[0]
    memory.tick(0.0, 1.0)
    disk_s, load_s = 2 * PAGE / DISK_RATE, 2 * PAGE / RATE
    assert load_s < 0.5 < disk_s
    memory.hint([(agent, 3.0)])  # in two seconds at the soonest
    memory.plan(0.0)
    assert memory.counters.staged_pages == 0
    memory.hint([(agent, 1.6)])
    memory.plan(0.0)
    settle(memory)
    memory.plan(0.0)
    assert where(memory, agent) == (0, 2, 2)
    memory.hint([(agent, 1.0)])
    work(memory)
    assert where(memory, agent) == (2, 2, 2)


def test_the_disk_has_time_while_other_prefills_go_before() -> None:
    """A request that would compute at once computes; the same one behind a backlog reads."""
    memory = manager(4, 4, 40)
    town(memory, 8)
    agent, count = on_disk_alone(memory, 8)[-1], 2 * SIZE + 1
    read_s = 2 * PAGE / DISK_RATE + 2 * PAGE / RATE
    for step in range(3):  # a block takes half of what reading one takes
        memory.timing.launched(step, 2 * SIZE)
        memory.timing.begin_iteration(100.0 * step)
        memory.timing.begin_iteration(100.0 * step + read_s / 2)
    for backlog, num_cached in ((0, 0), (SIZE, 0), (4 * SIZE, 2 * SIZE)):
        lease = memory.acquire(agent, tokens(agent, count), 3, backlog=backlog)
        assert lease is not None and lease.num_cached == num_cached
        settle(memory)
        memory.release(lease)
        check_integrity(memory)


def test_a_request_waits_for_a_read_that_is_under_way() -> None:
    memory = manager(4, 4, 40)
    town(memory, 8)
    agent = on_disk_alone(memory, 8)[0]
    memory.hint([(agent, 0.0)])
    memory.plan(0.0)
    assert memory.counters.staged_pages == 2
    count = 2 * SIZE + 1
    lease = memory.acquire(agent, tokens(agent, count), 3)
    assert lease is not None and not lease.is_ready and lease.num_cached == 2 * SIZE
    check_integrity(memory, [lease])
    assert memory.counters.recalled_pages == 0
    settle(memory)
    assert lease.is_ready and lease.failed is None
    assert memory.counters.staged_pages == 2
    memory.release(lease)
    check_integrity(memory)


def test_what_comes_late_from_the_disk_is_computed_again() -> None:
    """A block in 4 seconds from this disk, and in a hundredth by a prefill."""
    memory = manager(4, 4, 40)
    town(memory, 8)
    agent = on_disk_alone(memory, 8)[0]
    for step in range(40):
        memory.timing.begin_iteration(0.1 * step)
        memory.launched(step, 40 * SIZE)
    lease = memory.acquire(agent, tokens(agent, 2 * SIZE + 1), 3)
    assert lease is not None and lease.num_cached == 0 and lease.is_ready
    assert memory.counters.spared_blocks == 2
    memory.release(lease, tokens(agent, 2 * SIZE + 1), 2 * SIZE)
    assert where(memory, agent) == (2, 0, 2)
    check_integrity(memory)


def staging(memory: MemoryManager, *agents: AgentState) -> Stages:
    """Stages with ``agents`` in their queue, all of whom call now."""
    memory.hint([(agent.id, 0.0) for agent in agents])
    queue: LazyHeap[AgentState] = LazyHeap(soonest=True)
    for agent in agents:
        queue.add(agent, agent.known_next_use())
    return Stages(memory.residency, queue)


@pytest.mark.parametrize("is_fast", [True, False])
def test_a_disk_slower_than_computing_is_read_for_those_who_can_wait(is_fast: bool) -> None:
    """It is written all the same, as what is read meanwhile need not be computed. Nothing is read
    for a request that starts sooner than the read ends, and computes."""
    memory = manager(4, 4, 40)
    if not is_fast:
        for step in range(40):
            memory.timing.begin_iteration(0.1 * step)
            memory.launched(step, 40 * SIZE)
    town(memory, 8)
    one, other = on_disk_alone(memory, 8)[:2]
    first, second = memory.owners.agent(one), memory.owners.agent(other)
    stages = staging(memory, first, second)
    in_time_s = 2 * PAGE / DISK_RATE + 2.0 * memory.timing.iteration_s
    stages.plan((first, second), lambda agent, count: 0.0 if agent is first else in_time_s)
    settle(memory)
    assert (where(memory, one), where(memory, other)) == (
        ((0, 2, 2), (0, 0, 2)) if is_fast else ((0, 0, 2), (0, 2, 2))
    )
    check_integrity(memory)


@pytest.mark.parametrize("waits", [True, False])
def test_for_those_who_are_served_next_reads_start_at_once(waits: bool) -> None:
    memory = manager(4, 4, 40)
    town(memory, 8)
    agent = memory.owners.agent(on_disk_alone(memory, 8)[0])
    stages = staging(memory, agent)
    stages.plan((agent,) if waits else (), lambda agent, count: 100.0)
    assert memory.counters.staged_pages == 2 * waits


@pytest.mark.parametrize("purpose", ["stage", "recall"])
def test_what_is_not_likely_to_be_used_again_makes_room_before_copies_of_the_disk(
    purpose: str,
) -> None:
    """Ends of prompts with which nobody went on, on the host alone, never go to the disk."""
    memory = manager(6, 16, 60)
    for agent in range(6):
        for end in range(50, 53):
            calls(memory, agent, [[agent, end]])
            memory.hint([(agent, 100.0 + agent)])
            work(memory)
    memory.hint([(agent, 200.0 + agent) for agent in range(6)])
    ranking, room = memory.ranking, memory.residency.room
    alone = [s for s in memory.tree if s.host and not s.device]
    ends = [s for s in alone if ranking.unlikely_to_return(s) and not s.disk]
    clean = [s for s in alone if s.num_unspilled == 0]
    assert ends and clean
    count = memory.host.num_free + sum(len(s.host) for s in ends)
    assert room.to_recall(count) if purpose == "recall" else room.to_stage(count, SOON)
    assert not any(s.host for s in ends) and all(s.host for s in clean)
    check_integrity(memory)


def test_a_read_that_has_to_wait_for_another_copy_starts_after_it() -> None:
    for upcoming in (True, False):
        memory = manager(4, 4, 40)
        town(memory, 8)
        number = on_disk_alone(memory, 8)[0]
        agent = memory.owners.agent(number)
        stages = staging(memory, agent)
        [(segment, _)] = memory.tree.match(memory.tree.root(TEXT), tokens(number, 99), 24)
        memory.residency.disk.start_stage([(segment, 1)], agent.known_next_use())
        for _ in range(2):
            stages.plan((agent,) if upcoming else (), lambda agent, count: 0.0)
            settle(memory)
        assert where(memory, number) == (0, 2, 2)


def test_a_full_disk_keeps_what_is_used_first() -> None:
    memory = manager(4, 4, 8)
    town(memory, 12)
    gone = [agent for agent in range(12) if not any(where(memory, agent))]
    assert gone and memory.disk.num_free < 2
    assert min(gone) > max(on_disk_alone(memory, 12), default=-1) - len(gone)
    check_integrity(memory)


def test_an_unreadable_block_is_computed_again() -> None:
    for reads in ("demand", "ahead"):
        memory = manager(4, 4, 40)
        link = memory.residency.link.link  # type: ignore[attr-defined]
        assert isinstance(link, FailingReads)
        town(memory, 8)
        agent = on_disk_alone(memory, 8)[0]
        link.failures = 1
        if reads == "ahead":
            memory.hint([(agent, 0.0)])
            memory.plan(0.0)
            settle(memory)
        else:
            lease = memory.acquire(agent, tokens(agent, 2 * SIZE + 1), 3)
            assert lease is not None
            settle(memory)
            assert lease.failed is not None and isinstance(lease.error, LinkError)
            memory.fail(lease)
        assert memory.counters.failed_transfers >= 1
        assert where(memory, agent) == (0, 0, 0)
        check_integrity(memory)


class GivenUp(VirtualLink):
    """A virtual link whose disk is given up after so many looks at its rates."""

    looks = 10**9

    def rate(self, direction: Direction) -> float:
        if direction in ("up", "down"):
            self.looks -= 1
            if self.looks < 0:
                return 0.0
        return super().rate(direction)


@pytest.mark.parametrize("policy", ["deadline", "lru-swap"])
def test_a_disk_may_be_given_up_between_any_two_looks(policy: str) -> None:
    """The thread that copies gives it up while memory decides."""
    num_given_up = 0
    for looks in range(60):
        link = GivenUp(PAGE, RATE, DISK_RATE)
        memory = manager(4, 4, 40, policy, link=link)
        town(memory, 8)
        link.looks = looks
        for agent in on_disk_alone(memory, 8):
            memory.hint([(agent, 0.0)])
            work(memory, 2)
            turn(memory, agent, 2)
            check_integrity(memory)
        num_given_up += link.looks < 0
    assert num_given_up > 5


def test_without_room_on_the_host_a_request_computes_again() -> None:
    """All of the host is on its way to the device, for a lease that waits."""
    memory = manager(6, 2, 40)
    town(memory, 10)
    first, second = on_disk_alone(memory, 10)[:2]
    leases = []
    for agent, cached in ((first, 2 * SIZE), (second, 0)):
        lease = memory.acquire(agent, tokens(agent, 2 * SIZE + 1), 3)
        assert lease is not None and lease.num_cached == cached
        assert lease.is_ready == (not cached)
        leases.append(lease)
        check_integrity(memory, leases)
    settle(memory)
    assert leases[0].is_ready and leases[0].failed is None
    for lease in leases:
        memory.release(lease)
    check_integrity(memory)


def test_an_engine_without_a_disk_says_nothing_of_one() -> None:
    memory = manager(4, 4, 0)
    town(memory, 8)
    assert [use.name for use in memory.tier_use] == ["device", "host"]
    assert memory.counters.spilled_pages == memory.counters.staged_pages == 0
    assert not memory.residency.disk.is_there
