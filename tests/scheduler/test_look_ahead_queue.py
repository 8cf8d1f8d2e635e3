"""What the planner asks the scheduler about its queue has an answer in every state."""

from __future__ import annotations

from scalesim.config import SchedulerConfig
from tests.machines.scheduler_world import SchedulerWorld, Setting


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
