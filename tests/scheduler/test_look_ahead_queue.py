"""What the planner asks the scheduler about its queue has an answer in every state."""

from __future__ import annotations

from random import Random
from unittest.mock import patch

import numpy as np
import pytest

from scalesim.config import SchedulerConfig
from scalesim.core import AgentId
from scalesim.memory.links.virtual_link import VirtualLink
from scalesim.memory.manager import MemoryManager
from scalesim.sampling.params import SamplingParams
from scalesim.scheduler.forecast import QueueForecast
from scalesim.scheduler.scheduler import Scheduler
from scalesim.scheduler.sequence import Sequence
from scalesim.scheduler.waiting_line import WaitingLine
from tests.machines.scheduler_world import SchedulerWorld, Setting
from tests.memory.test_disk import DISK_RATE, manager, on_disk_alone, where
from tests.memory.test_residency import PAGE, RATE, SIZE, settle, tokens, turn


def test_a_queue_that_nobody_runs_ahead_of() -> None:
    """All slots are free and more wait than there are slots: pages are short, or all has just
    ended. Found by the campaign of schedules, seed 111: the planner divided by nobody."""
    config = SchedulerConfig(max_num_seqs=1, max_num_batched_tokens=8)
    world = SchedulerWorld(Setting(8, scheduler=config))
    for agent in range(3):
        world.add(agent, [agent] * 5, 2)
    assert world.scheduler.num_running == 0
    assert [world.scheduler.forecast.starts_in(agent) for agent in range(3)] == [0.0, 0.0, 0.0]
    world.run(100)
    world.close()


def request(agent: int, work: float = 0.0) -> Sequence:
    """A request of ``agent``: two blocks that it spoke before, and one token more."""
    num_tokens = 2 * SIZE + 1
    prompt, params = np.frombuffer(tokens(agent, num_tokens), np.int32), SamplingParams()
    return Sequence(agent, agent, prompt, num_tokens, num_tokens + 1, params, 0, work=work)


def two_at_once(memory: MemoryManager) -> Scheduler:
    config = SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=16, lookahead_window=0)
    return Scheduler(memory, config, 16)


@pytest.mark.parametrize(
    ("disk", "policy", "near"), [(40, "deadline", 4), (40, "lru-swap", 2), (0, "deadline", 2)]
)
def test_the_disk_reads_as_far_ahead_as_half_of_the_host_holds(
    disk: int, policy: str, near: int
) -> None:
    """Ten requests of three blocks wait, two of which may run, above a host of 24 pages."""
    memory = manager(4, 24, disk, policy)
    scheduler = two_at_once(memory)
    for agent in range(10):
        scheduler.add(request(agent))
        memory.hint([(agent, 0.0)])
    memory.plan(0.0, scheduler.forecast)
    assert list(scheduler.forecast.upcoming) == [0, 1] and scheduler.forecast.has_more
    served_next = [agent for agent in range(10) if memory.owners.agent(agent).is_served_next]
    assert served_next == list(range(near))


class FarAway(QueueForecast):
    """Says that whoever runs has a long way to go, so that no read is urgent."""

    def starts_in(self, agent: AgentId) -> float | None:
        return 1000.0


def test_calls_shorter_than_a_read_find_what_was_read_during_longer_ones() -> None:
    """A read takes 0.8 s. Twelve calls of 1.6 s leave time for as many reads more; the six behind
    them take 0.2 s each. Each request in line is looked at once, however many plans are made."""
    link = VirtualLink(PAGE, RATE, DISK_RATE)
    memory = manager(4, 36, 100, link=link)
    for agent in range(44):
        turn(memory, agent, 2)
        memory.hint([(agent, 100.0 + agent)])
        for _ in range(3):
            memory.plan(0.0)
            settle(memory)
    scheduler, called = two_at_once(memory), on_disk_alone(memory, 44)[:18]
    queue = scheduler.queue
    for place, agent in enumerate(called):
        scheduler.add(request(agent, work=len(called) - place))
        memory.hint([(agent, 0.0)])
    ranked = patch.object(memory.ranking, "serve_next", wraps=memory.ranking.serve_next)
    num_plans, prompt_len = 0, 2 * SIZE + 1
    with ranked as serve_next:
        for place, agent in enumerate(called):
            memory.plan(link.now_s, FarAway(scheduler.slots, queue, memory))
            if place >= 2:  # the first two were called just now
                assert where(memory, agent)[1] == 2, place
            sequence = queue.next(memory.first_resident)
            assert sequence.agent == agent
            queue.admitted(sequence)
            lease = memory.acquire(agent, tokens(agent, prompt_len), 3)
            assert lease is not None
            for _ in range(2 if place >= 12 else 16):
                link.advance_to(link.now_s + 0.1)
                memory.poll()
                memory.plan(link.now_s, FarAway(scheduler.slots, queue, memory))
                num_plans += 1
            assert lease.is_ready and lease.failed is None
            memory.release(lease, tokens(agent, prompt_len), 2 * SIZE)
            memory.hint([(agent, 200.0 + agent)])
    assert num_plans > 200 and serve_next.call_count <= len(called)


def test_a_line_tells_of_each_request_once_as_it_comes_near() -> None:
    """Whoever joins and leaves: all of the first five were told, in their order, and none of them
    is told again while it stays among these."""
    draw, line, near = Random(0), WaitingLine(1 << 30), 5
    was_near: set[int] = set()
    for number in range(400):
        for step in range(draw.randrange(4)):
            waiting = list(line)
            if draw.random() < 0.6 or not waiting:
                new = request(number % 7, work=draw.randrange(5))
                new.id, new.priority = 4 * number + step, draw.randrange(2)
                line.add(new)
            else:
                leave = draw.choice((line.admitted, line.discard))
                leave(waiting[0] if draw.random() < 0.7 else draw.choice(waiting))
        order = [one.id for one in line]
        taken = [one.id for one in line.take_next(near)]
        is_near = set(order[:near])
        assert taken == [id for id in order[:near] if id in taken]
        assert is_near - was_near <= set(taken) and not was_near.intersection(taken)
        was_near = is_near
        agents = [one.agent for one in line]
        for agent in range(7):
            first = agents.index(agent) if agent in agents else None
            assert line.position_of(agent) == first


def test_a_request_in_line_may_become_nobodys() -> None:
    """Its agent is forgotten; another of that name may call before it is served."""
    line, others = WaitingLine(8), [request(1), request(2)]
    nobodys = request(0)
    for sequence in (nobodys, *others):
        line.add(sequence)
    assert line.position_of(0) == 0 and line.position_of(2) == 2
    nobodys.agent = None
    assert line.position_of(0) is None
    again = request(0)
    again.id = 7
    line.add(again)
    assert line.position_of(0) == 3
    line.discard(nobodys)
    assert line.position_of(0) == 2 and list(line) == [*others, again]
    line.discard(again)
    assert line.position_of(0) is None
