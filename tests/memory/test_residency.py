"""What the planner does, case by case: victims, copies, when loads start, pressure on the host."""

from __future__ import annotations

import ast
from collections.abc import Collection
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

import scalesim.memory
from scalesim.core import AgentId
from scalesim.memory.audit.integrity import check_integrity
from scalesim.memory.eviction.policies import policy_named
from scalesim.memory.lease import Lease
from scalesim.memory.links.virtual_link import VirtualLink
from scalesim.memory.manager import MemoryManager
from scalesim.memory.prefetch.config import PlannerConfig
from scalesim.memory.prefetch.prefetcher import Prefetcher
from scalesim.memory.tree.prefix_tree import TEXT

MEMORY = Path(scalesim.memory.__file__).parent
SIZE, PAGE = 4, 64
RATE = PAGE * 10.0  # ten pages a second


def manager(
    pages: int, host: int, policy: str = "deadline", read_rate: float = RATE / 2
) -> MemoryManager:
    return MemoryManager(
        block_size=SIZE,
        page_bytes=PAGE,
        device_pages=pages + 1,
        host_pages=host,
        num_rows=9,
        policy=policy_named(policy),
        link=VirtualLink(PAGE, RATE),
        planner_config=PlannerConfig(clean_fraction=0.0),
        read_rate=lambda: read_rate,
    )


def tokens(agent: int, count: int) -> bytes:
    return np.full(count, agent, np.int32).tobytes()


def settle(memory: MemoryManager) -> None:
    while memory.residency.transfers:
        memory.residency.link.wait(100.0)
        memory.poll()


def turn(memory: MemoryManager, agent: int, blocks: int) -> Lease:
    """One request of ``blocks`` whole blocks and one token more, from look-up to release."""
    count = blocks * SIZE + 1
    for _ in range(4):
        lease = memory.acquire(agent, tokens(agent, count), blocks + 1)
        if lease is not None:
            break
        settle(memory)
    assert lease is not None
    settle(memory)
    lease.take_copies()
    memory.release(lease, tokens(agent, count), blocks * SIZE)
    check_integrity(memory)
    return lease


def where(memory: MemoryManager, agent: int) -> tuple[int, int]:
    """Blocks of ``agent`` on the device and on the host."""
    path = memory.tree.match(memory.tree.root(TEXT), tokens(agent, 99), 24)
    return sum(s.device.valid for s, _ in path), sum(s.host.valid for s, _ in path)


def test_pages_that_nothing_is_loaded_into_keep_their_fence() -> None:
    """Making room for a load may drop what was to be loaded: its pages go back unused, and a step
    that was launched before they were evicted may still read them."""
    memory = manager(4, 4)
    lease = turn(memory, 0, 2)
    assert lease.agent is not None
    memory.launched(7, 0)
    memory.clear()
    pages = memory.residency.take(4)
    assert pages is not None and memory.device.fence(pages) == 7
    gone = [(lease.end, 2)]
    planner = memory.planner
    assert isinstance(planner, Prefetcher) and not planner.start(lease.agent, gone, pages)
    assert memory.device.num_free == 4
    assert [memory.device.fence([page]) for page in pages] == [7, 7, 7, 7]


def test_device_pages_go_back_in_one_place() -> None:
    """Whoever gives pages back must say which step may still touch them: only residency knows."""
    calls = [
        f"{path.name}: {ast.unparse(node.func)}"
        for path in sorted(MEMORY.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "free"
        and ast.unparse(node.func.value).split(".")[-1] in ("pool", "device", "host")
    ]
    assert calls == ["drops.py: tier.pool.free", "tiers.py: pool.free"]


def test_the_farthest_leaves_and_is_saved_first() -> None:
    memory = manager(9, 9)
    for agent, at in ((0, 5.0), (1, 9.0), (2, 7.0)):
        turn(memory, agent, 2)
        memory.hint([(agent, at)])
    turn(memory, 3, 2)
    turn(memory, 4, 3)
    assert where(memory, 1) == (0, 2) and where(memory, 0)[0] == 2
    assert memory.counters.dropped_pages == 0


def test_what_is_above_a_victim_leaves_with_it_as_long_as_pages_are_wanted() -> None:
    for wanted, left in ((6, 2), (8, 0)):
        memory = manager(8, 8)
        turn(memory, 0, 2)
        turn(memory, 0, 4)  # two blocks used again, and two fresh ones behind them
        path = memory.tree.match(memory.tree.root(TEXT), tokens(0, 99), 9)
        assert [count for _, count in path] == [2, 2]
        for segment in memory.tree:
            memory.residency.start_save(segment)
        settle(memory)
        with patch.object(memory.device, "free", wraps=memory.device.free) as free:
            assert memory.residency.take(wanted) is not None
        assert [len(call.args[0]) for call in free.call_args_list] == [4 - left]
        assert where(memory, 0) == (left, 4)


def test_lru_goes_by_last_use_whatever_is_expected() -> None:
    memory = manager(7, 8, "lru-swap")
    for agent, at in ((0, 1.0), (1, 99.0)):
        turn(memory, agent, 2)
        memory.hint([(agent, at)])
    turn(memory, 2, 4)
    assert where(memory, 0) == (0, 2) and where(memory, 1)[0] == 2


def test_what_has_a_copy_moves_no_bytes_when_it_leaves() -> None:
    memory = manager(5, 8, "lru-swap")
    turn(memory, 0, 3)
    turn(memory, 1, 3)
    assert turn(memory, 0, 3).num_host_blocks == 2  # its first block had not left
    saved = memory.counters.saved_pages
    turn(memory, 1, 3)
    turn(memory, 0, 3)
    assert memory.counters.saved_pages == saved and memory.counters.loaded_pages == 6


def test_without_a_host_state_is_dropped_and_rebuilt() -> None:
    memory = manager(5, 8, "lru-recompute")
    turn(memory, 0, 3)
    turn(memory, 1, 3)
    assert where(memory, 0) == (1, 0)  # from the end, and no more than was needed
    assert turn(memory, 0, 3).num_cached == SIZE and memory.counters.saved_pages == 0


def test_a_load_for_a_later_move_starts_when_the_link_would_be_late() -> None:
    """The clock may move at once, and then it moves on at its pace."""
    memory = manager(4, 8)
    turn(memory, 0, 2)
    turn(memory, 1, 3)
    settle(memory)
    assert where(memory, 0) == (0, 2)
    timing = memory.timing
    timing.tick_s = 0.1
    memory.hint([(1, 1e6)])
    memory.hint([(0, 10.0)])
    load = 2 * PAGE / RATE / 0.1  # in ticks
    timing.now = 10.0 - timing.move - load - 0.01
    memory.plan(0.0)
    assert memory.counters.prefetched_pages == 0
    timing.now = 10.0 - timing.move - load + 0.01
    for _ in range(3):  # the victim is saved first
        memory.plan(0.0)
        settle(memory)
    assert memory.counters.prefetched_pages == 2 and where(memory, 0) == (2, 2)
    assert turn(memory, 0, 2).num_host_blocks == 0 and memory.counters.prefetch_used == 2


class Forecast:
    """What a scheduler would say: so many requests wait, those of ``upcoming`` first, for pages or
    for a slot, which is free ``in`` so many iterations."""

    def __init__(
        self,
        num_waiting: int,
        frees_in: float = 0.0,
        *,
        waits_for_pages: bool = False,
        upcoming: Collection[AgentId] | None = None,
    ) -> None:
        self.num_waiting, self._frees_in = num_waiting, frees_in
        self.waits_for_pages = waits_for_pages
        self.upcoming = () if upcoming is None else upcoming
        self.has_more = upcoming is not None and num_waiting > len(upcoming)

    def take_next(self, num_blocks: int) -> Collection[AgentId]:
        return ()

    def starts_in(self, agent: AgentId) -> float:
        return self._frees_in


def test_what_the_next_move_needs_is_loaded_once_no_request_waits() -> None:
    memory = manager(4, 8)
    turn(memory, 0, 2)
    turn(memory, 1, 3)
    settle(memory)
    memory.hint([(0, 1.0), (1, 5.0)])
    for waiting, pages in ((1, 0), (0, 2)):
        for _ in range(3):
            memory.plan(0.0, Forecast(waiting))
            settle(memory)
        assert memory.counters.prefetched_pages == pages


def test_what_agents_share_comes_once_and_what_is_their_own_comes_behind_it() -> None:
    """The load of the first agent brings the prefix; those of the others do not wait for its
    end."""
    memory = manager(8, 20)
    for agent in range(3):
        prompt = tokens(9, 2 * SIZE) + tokens(agent, SIZE + 1)
        lease = memory.acquire(agent, prompt, 4)
        assert lease is not None
        lease.take_copies()
        memory.release(lease, prompt, 3 * SIZE)
    turn(memory, 7, 7)
    memory.hint([*((agent, 1.0) for agent in range(3)), (7, 5.0)])
    memory.plan(0.0)
    settle(memory)  # the victim is saved
    memory.timing.iteration_s = 1.0  # the link is given more than one load at once
    memory.plan(0.0)
    assert memory.counters.prefetched_pages == 2 + 3
    settle(memory)
    check_integrity(memory)
    for agent in range(3):
        prompt = tokens(9, 2 * SIZE) + tokens(agent, SIZE + 1)
        lease = memory.acquire(agent, prompt, 4)
        assert lease is not None and lease.is_ready and lease.num_cached == 3 * SIZE
        memory.release(lease, prompt, 3 * SIZE)


def test_what_a_waiting_request_needs_is_loaded_before_its_slot_is_free() -> None:
    memory = manager(4, 8)
    turn(memory, 0, 2)
    turn(memory, 1, 3)
    settle(memory)
    memory.hint([(0, 0.0), (1, 5.0)])
    memory.timing.iteration_s = 0.1
    memory.plan(0.0, Forecast(1, frees_in=10.0))
    settle(memory)
    memory.plan(0.0, Forecast(1, frees_in=10.0))
    assert memory.counters.prefetched_pages == 2


def test_a_request_with_a_free_slot_takes_its_pages_itself() -> None:
    """What is loaded ahead of it would leave for the request that is admitted before it."""
    memory = manager(4, 8)
    turn(memory, 0, 2)
    turn(memory, 1, 3)
    settle(memory)
    memory.hint([(0, 0.0), (1, 5.0)])
    for waits, pages in ((True, 0), (False, 2)):
        for _ in range(3):
            memory.plan(0.0, Forecast(1, waits_for_pages=waits))
            settle(memory)
        assert memory.counters.prefetched_pages == pages


@pytest.mark.parametrize("told", [(0, 1), (1, 0)])
@pytest.mark.parametrize(("waiting", "pages"), [(2, 0), (9, 2)])
def test_where_many_wait_the_next_take_the_place_of_the_last(
    waiting: int, pages: int, told: tuple[int, int]
) -> None:
    """Agent 1 has filled the pool before the order of service was known, and is served last,
    whoever was told of first."""
    memory = manager(4, 8)
    turn(memory, 0, 2)
    turn(memory, 1, 3)
    settle(memory)
    memory.hint([(agent, 0.0) for agent in told])
    next_two = (0, 1) if waiting == 2 else (0,)
    for _ in range(3):
        memory.plan(0.0, Forecast(waiting, frees_in=10.0, upcoming=next_two))
        settle(memory)
    assert memory.counters.prefetched_pages == pages


def test_where_many_wait_loads_come_in_the_order_of_service() -> None:
    """Whatever the order in which the agents called; and nothing is loaded for who comes later."""
    memory = manager(8, 20)
    for agent in range(4):
        turn(memory, agent, 2)
        memory.hint([(agent, 9.0)])
        settle(memory)
    turn(memory, 4, 6)
    memory.hint([(4, 50.0), *((agent, 0.0) for agent in range(4))])
    there = [where(memory, agent)[0] for agent in range(4)]
    for upcoming in ((3, 2), (3, 2, 1)):
        for _ in range(4):
            memory.plan(0.0, Forecast(9, frees_in=10.0, upcoming=upcoming))
            settle(memory)
        loaded = [agent for agent in range(4) if where(memory, agent)[0] > there[agent]]
        assert loaded == sorted(upcoming), (there, upcoming)


@pytest.mark.parametrize("theirs", [5.0, 7.0])
def test_a_load_ahead_waits_for_the_save_of_what_is_used_later(theirs: float) -> None:
    """While agent 2's pages are copied, the load would take those of agent 1, though agent 1 comes
    before agent 2; once they are copied, they leave."""
    memory = manager(6, 20)
    for agent in (0, 1):
        turn(memory, agent, 2)
        settle(memory)
    for segment in list(memory.tree):
        if segment.parent is not None and segment.num_dirty:
            memory.residency.start_save(segment)
    settle(memory)
    turn(memory, 2, 4)
    memory.hint([(0, 1.0), (1, theirs), (2, 6.0)])
    victim = memory.ranking.farthest_dirty()
    assert victim is not None and where(memory, 0)[0] == 0 and where(memory, 1)[0] > 0
    memory.residency.start_save(victim)
    there = where(memory, 1)
    memory.plan(0.0)
    assert (where(memory, 1) == there) == (theirs < 6.0)
    settle(memory)
    memory.plan(0.0)
    assert memory.counters.prefetched_pages == 2
    settle(memory)
    check_integrity(memory)


@pytest.mark.parametrize("move", [1.0, 0.25])
@pytest.mark.parametrize("theirs", [0.0, 0.3, 1.0, 1.001, 1.4, 1.6, 2.0, 7.0, None])
def test_a_load_displaces_only_what_is_needed_at_a_later_move(
    theirs: float | None, move: float
) -> None:
    """Also where the other is said to come a little later: it would be loaded again."""
    memory = manager(4, 8)
    turn(memory, 0, 2)
    turn(memory, 1, 3)
    settle(memory)
    memory.timing.tick(2.0, 1e-6)  # who is not spoken of was used two ticks ago
    memory.timing.move = move
    memory.hint([(0, 3.0), (1, None if theirs is None else 2.0 + theirs)])
    for _ in range(3):
        memory.plan(0.0)
        settle(memory)
    displaces = theirs is None or theirs - 1.0 > 0.5 * move
    assert memory.counters.prefetched_pages == (2 if displaces else 0)


def test_nothing_is_loaded_ahead_while_a_request_waits_for_pages() -> None:
    memory = manager(4, 8)
    turn(memory, 0, 2)
    turn(memory, 1, 3)
    held = memory.acquire(2, tokens(2, 5), 2)
    settle(memory)
    held = held or memory.acquire(2, tokens(2, 5), 2)
    assert memory.acquire(3, tokens(3, 13), 4) is None
    settle(memory)
    memory.hint([(0, 0.0)])
    memory.plan(0.0)
    assert memory.counters.prefetched_pages == 0
    assert held is not None
    memory.release(held)
    assert memory.acquire(3, tokens(3, 13), 4) is not None


def test_a_full_host_gives_up_copies_of_what_is_on_the_device_first() -> None:
    memory = manager(6, 4, "lru-swap")
    turn(memory, 0, 3)
    turn(memory, 1, 3)
    turn(memory, 0, 3)
    assert where(memory, 0) == (3, 3) and where(memory, 1)[1] <= 3
    turn(memory, 2, 3)
    check_integrity(memory)
    assert memory.host.num_used <= 4


def test_a_refused_request_changes_nothing_that_is_held() -> None:
    memory = manager(4, 0, "lru-recompute")
    lease = memory.acquire(0, tokens(0, 9), 3)
    assert lease is not None
    pages = list(lease.private)
    assert memory.acquire(1, tokens(1, 9), 3) is None
    assert not memory.grow(lease, 6) and lease.private == pages
    check_integrity(memory, [lease])
    assert memory.grow(lease, 4)
    memory.release(lease)
    memory.clear()
    assert memory.device.num_free == 4


def test_a_request_of_the_whole_pool_fits_beside_its_own_past() -> None:
    """Blocks behind the match, or another's partial block, must not keep pages from a request."""
    memory = manager(4, 0, "lru-recompute")
    count = 3 * SIZE + 2
    lease = memory.acquire(0, tokens(0, count), 4)
    assert lease is not None
    memory.release(lease, tokens(0, count), count)
    branch = tokens(0, SIZE) + tokens(7, 3 * SIZE)
    lease = memory.acquire(1, branch, 4)
    assert lease is not None and lease.num_cached == SIZE
    memory.release(lease)
    check_integrity(memory)


def test_a_borrowed_tail_does_not_keep_a_lease_from_growing_to_the_whole_pool() -> None:
    memory = manager(4, 0, "lru-recompute")
    lease = memory.acquire(0, tokens(0, 6), 2)
    assert lease is not None
    memory.release(lease, tokens(0, 6), 6)
    other = memory.acquire(1, tokens(0, 8), 2)
    assert other is not None and len(other.copies) == 1 and other.num_cached == 6
    other.take_copies()  # launched
    assert memory.grow(other, 4)
    check_integrity(memory, [other])


def test_a_waiter_of_a_cancelled_load_is_told() -> None:
    """An aborted request's load is called back in part; whoever waits for the rest starts anew."""
    memory = manager(6, 8, "lru-swap")
    turn(memory, 0, 4)
    turn(memory, 1, 5)
    settle(memory)
    transfer_pages = memory.acquire(0, tokens(0, 17), 5)
    assert transfer_pages is not None and not transfer_pages.is_ready
    transfer = next(iter(memory.residency.transfers.values()))
    memory.release(transfer_pages)
    assert transfer.tickets  # one chunk, already started: it is let run
    again = memory.acquire(0, tokens(0, 17), 5)
    assert again is not None and not again.is_ready
    transfer.cancelled = True  # as if further chunks had been called back
    settle(memory)
    assert again.is_ready and again.failed is transfer
    memory.fail(again)
    check_integrity(memory)
    third = memory.acquire(0, tokens(0, 17), 5)
    assert third is not None and third.num_host_blocks == 4  # its host copy is as good as before


def test_hostile_advice_is_harmless() -> None:
    memory = manager(5, 8)
    for at in (float("nan"), float("inf"), -float("inf"), 1e308, -1.0):
        for agent in range(3):
            memory.hint([(agent, at)])
            turn(memory, agent, 3)
            memory.plan(0.0)
            settle(memory)
            check_integrity(memory)


def test_many_templates_and_dropped_agents_leave_nothing_behind() -> None:
    memory = manager(40, 40)
    for agent in range(3):
        for template in range(20):  # more than an agent's paths
            prompt = tokens(100 * agent + template, 2 * SIZE + 1)
            lease = memory.acquire(agent, prompt, 3)
            if lease is None:
                settle(memory)
                continue
            settle(memory)
            memory.release(lease, prompt, 2 * SIZE)
            check_integrity(memory)
    for agent in range(3):
        memory.owners.drop(agent)
        check_integrity(memory)
    assert not any(segment.owners for segment in memory.tree)
    settle(memory)
    memory.clear()
    assert memory.tree.num_segments == 0 and memory.host.num_free == 40


def test_a_tail_leaves_with_what_it_hangs_from_though_the_hint_came_later() -> None:
    """A partial block with an outdated place in the order kept the farthest agent on the device."""
    memory = manager(9, 9)
    for agent, at in ((0, 5.0), (1, 9.0)):
        lease = memory.acquire(agent, tokens(agent, 2 * SIZE + 2), 3)
        assert lease is not None
        memory.release(lease, tokens(agent, 2 * SIZE + 2), 2 * SIZE + 2)
        memory.hint([(agent, at)])
    first = memory.ranking.farthest_on_device()
    assert first is not None and first.partial_of == 1


def calls(memory: MemoryManager, agent: int, texts: list[list[int]]) -> None:
    """Calls of whole blocks, each named by a number: a prompt and nothing more."""
    for blocks in texts:
        prompt = np.repeat(np.array([*blocks, 999], np.int32), SIZE)
        lease = memory.acquire(agent, prompt.tobytes(), len(prompt) // SIZE)
        assert lease is not None
        settle(memory)
        lease.take_copies()
        memory.release(lease, prompt.tobytes(), len(prompt))
        check_integrity(memory)


def unlikely_to_return(memory: MemoryManager, blocks: list[int]) -> bool:
    text = np.repeat(np.array(blocks, np.int32), SIZE).tobytes()
    end, count = memory.tree.match(memory.tree.root(TEXT), text, len(blocks))[-1]
    assert count == end.num_blocks
    return memory.ranking.unlikely_to_return(end)


def test_a_dialogue_that_starts_over_leaves_its_past_to_the_others() -> None:
    """Each of its texts was used again once, and never after the next start."""
    memory = manager(400, 400)
    fixed = [1, 2]
    for start in range(100, 1700, 100):
        said = [start, start + 1]
        calls(memory, 0, [fixed + said, fixed + said + [start + 2], [*fixed, *said, start + 2, 3]])
    assert unlikely_to_return(memory, [*fixed, 1400, 1401])
    assert not unlikely_to_return(memory, fixed)


def test_what_a_call_does_not_go_on_with_leaves_first_from_that_call_on() -> None:
    """Not only from the call's end on: until then, what is needed would leave instead."""
    memory = manager(400, 400)
    for agent in range(2, 10):  # none of them goes on where it ended
        calls(memory, agent, [[agent, 50 + new] for new in range(5)])
    memory.clear()
    calls(memory, 0, [[0, 50], [0, 51]])
    calls(memory, 1, [[1, 50], [1, 51]])
    memory.hint([(0, 5.0), (1, 9.0)])
    last, other = (memory.owners.agent(agent).newest_end for agent in (0, 1))
    assert last is not None and other is not None
    assert memory.ranking.next_use(last).time == 5.0  # two calls tell nothing of their agent
    assert memory.ranking.is_evictable(last)
    prompt = np.repeat(np.array([0, 52, 999], np.int32), SIZE).tobytes()
    lease = memory.acquire(0, prompt, 3)
    assert lease is not None and memory.owners.agent(0).newest_end is last
    order = []
    while (victim := memory.ranking.farthest_on_device()) is not None:
        order.append(victim)
        memory.residency.drops.drop(victim)
    assert order.index(last) < order.index(other)
    memory.release(lease)


def test_templates_in_turn_are_not_over_between_their_turns() -> None:
    memory = manager(400, 400)
    templates = [[index, index + 1, index + 2] for index in range(100, 900, 100)]
    for new in range(5):
        calls(memory, 0, [[*template, 1000 + new] for template in templates])
    assert not any(unlikely_to_return(memory, template) for template in templates)
