"""What the planner asks the scheduler about its queue has an answer in every state."""

from __future__ import annotations

import numpy as np
import pytest

from scalesim.config import SchedulerConfig
from scalesim.sampling.params import SamplingParams
from scalesim.scheduler.scheduler import Scheduler
from scalesim.scheduler.sequence import Sequence
from tests.machines.scheduler_world import SchedulerWorld, Setting
from tests.memory.test_disk import manager


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


@pytest.mark.parametrize(
    ("disk", "policy", "seen"), [(40, "deadline", 6), (40, "lru-swap", 2), (0, "deadline", 2)]
)
def test_the_disk_reads_as_far_ahead_as_half_of_the_host_holds(
    disk: int, policy: str, seen: int
) -> None:
    """Ten requests of two blocks wait, two of which may run, above a host of 24 pages."""
    memory = manager(4, 24, disk, policy)
    config = SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=16, lookahead_window=0)
    scheduler, num_tokens = Scheduler(memory, config, 16), 2 * memory.block_size
    for agent in range(10):
        prompt = np.zeros(num_tokens, np.int32)
        sequence = Sequence(agent, agent, prompt, num_tokens, num_tokens + 1, SamplingParams(), 0)
        scheduler.add(sequence)
        memory.hint([(agent, 0.0)])
    assert list(scheduler.forecast.upcoming) == list(range(seen))
    assert scheduler.forecast.has_more
