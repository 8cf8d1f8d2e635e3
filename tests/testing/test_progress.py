"""Requests that wait in vain are told apart from those that only wait, with who waits for what."""

from __future__ import annotations

import pytest

from tests.machines.progress import LivenessError
from tests.machines.scheduler_world import SchedulerWorld, Setting


def test_nobody_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    world = SchedulerWorld(Setting(8))
    monkeypatch.setattr(world.memory, "acquire", lambda *args, **options: None)
    world.add(3, [1, 2, 3], 2)
    with pytest.raises(LivenessError, match=r"agent 3 .waiting., waits for pages") as caught:
        world.run(10)
    assert "8 free of 8, pinned by nobody" in str(caught.value)


def test_a_copy_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    world = SchedulerWorld(Setting(5, 2.0, "lru-swap", block_size=2))
    for agent in (0, 1):
        world.add(agent, [agent] * 5, 2)
        world.run(100)
    monkeypatch.setattr(world.memory, "poll", list)
    world.progress.patience = 20
    world.add(0, [0] * 5 + [7], 1)
    with pytest.raises(LivenessError, match=r"save.*tickets \[\d+, \d+"):
        world.run(10_000)


def test_turns_in_which_nothing_is_known_to_go_on() -> None:
    world = SchedulerWorld(Setting(8))
    world.add(0, [1, 2, 3], 2)
    world.iterate()
    world.progress.patience = 10
    for _ in range(10):
        world.progress.observe()
    with pytest.raises(LivenessError, match=r"agent 0 \(decode\) did not go on for 11"):
        world.progress.observe()
