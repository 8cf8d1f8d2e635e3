"""Replay does what the loop does: leaps change nothing, runs repeat, an engine plans the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalesim.core import Int32s
from scalesim.engine.engine import Engine
from scalesim.memory.audit.integrity import check_integrity
from scalesim.memory.eviction.policies import policy_named
from scalesim.memory.links.link import Copies
from scalesim.memory.manager import MemoryManager
from scalesim.memory.pools.storage import allocate_pages
from scalesim.replay.arms import Outcome, bounded, parts_for, play
from scalesim.replay.hardware import HARDWARE, MODELS, CostModel
from scalesim.replay.machine import Machine
from scalesim.replay.peers.policies import REPLAY_POLICIES
from scalesim.replay.runner import VirtualRunner
from scalesim.replay.scenario import Sizes, of_workload
from scalesim.replay.simulation import Simulation
from scalesim.replay.workloads import workload
from scalesim.requests.prompt import TextModel
from scalesim.scheduler.scheduler import Scheduler
from scalesim.testing.tag_runner import TagRunner
from scalesim.testing.tags import page_bytes_for
from scalesim.trace.file import read_trace
from tests.memory.copying_link import CopyingLink
from tests.traces import write_trace

COST = CostModel(HARDWARE["h100"], MODELS["llama-3.2-1b"])
SMALL: dict[str, dict[str, Any]] = {
    "w1": {"agents": 24, "ticks": 6, "private": 96, "shared": 32, "new": 24, "output": 20},
    "w2": {"agents": 20, "ticks": 6, "private": 64, "shared": 32, "new": 40, "output": 24,
           "active": 0.3, "max_context": 400},
    "w4": {"agents": 16, "ticks": 4, "private": 128, "new": 32, "output": 24, "spread": 0.5},
    "w5": {"agents": 8, "ticks": 8, "private": 96, "shared": 16, "new": 24, "output": 30},
}  # fmt: skip
SIZES = Sizes(model="llama-3.2-1b", residency=0.6, running=4)


def small(name: str, **changes: Any) -> tuple[Machine, Callable[[], Any]]:
    kind, knobs = workload(name, **{**SMALL[name], **changes})
    scenario = of_workload(kind, knobs, SIZES)
    return scenario.machine(SIZES), scenario.ticks


@pytest.mark.parametrize("policy", REPLAY_POLICIES)
@pytest.mark.parametrize("name", SMALL)
def test_taking_quiet_steps_in_one_go_changes_nothing(name: str, policy: str) -> None:
    machine, ticks = small(name)
    leaping, simulation = play(machine, policy, ticks())
    stepping, other = play(machine, policy, ticks(), leap=False)
    assert leaping == stepping
    assert simulation.log == other.log
    assert simulation.loop.stats.steps == other.loop.stats.steps
    check_integrity(simulation.loop.memory)


def test_the_same_seed_gives_the_same_outcome_and_another_does_not() -> None:
    machine, ticks = small("w2")
    assert play(machine, "deadline", ticks())[0] == play(machine, "deadline", ticks())[0]
    _, other = small("w2", seed=1)
    assert play(machine, "deadline", other())[0] != play(machine, "deadline", ticks())[0]


def test_oracle_is_deadline_where_hints_are_exact_and_better_informed_where_not() -> None:
    def outcome(policy: str, **changes: Any) -> Outcome:
        machine, ticks = small("w1", agents=60, ticks=12, **changes)
        return play(machine, policy, ticks())[0]

    exact = outcome("deadline")
    assert replace(outcome("oracle"), policy="deadline") == exact
    assert replace(outcome("oracle", hints="inverted"), policy="deadline") == exact
    assert outcome("deadline", hints="inverted").loaded_bytes > exact.loaded_bytes


def test_all_resident_loads_nothing_and_belady_needs_nothing() -> None:
    machine, ticks = small("w1")
    outcome, simulation = play(machine, "resident", ticks(), witness=True)
    assert outcome.loaded_bytes == 0.0
    assert outcome.least_pages == 0 and outcome.over_belady is None
    limited = bounded(replace(machine, device_pages=40), replace(outcome, policy="deadline"),
                      simulation.log, simulation.cached_pages())  # fmt: skip
    assert limited.least_bytes > 0.0


def test_a_workload_written_as_a_trace_replays_the_same(tmp_path: Path) -> None:
    machine, ticks = small("w2")
    write_trace(tmp_path / "w2.jsonl", ticks())
    direct, _ = play(machine, "deadline", ticks())
    again, _ = play(machine, "deadline", read_trace(tmp_path / "w2.jsonl"))
    assert direct == again


class Watched(CopyingLink):
    """A virtual link that keeps what was asked of it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.asked: list[tuple[float, str, int, bool]] = []

    def submit(self, copies: Copies, after: Any = None, *, urgent: bool = False) -> list[int]:
        self.asked.append((self.now_s, copies.direction, len(copies.device_pages), urgent))
        return super().submit(copies, after, urgent=urgent)


BLOCK, DEVICE, HOST, RUNNING = 16, 60, 400, 4


def parts(tags: bool) -> Any:
    """The same machine twice: with tags in its pages, or without. It serves by arrival: the engine
    hears of a tick's calls one by one, the replay of all at once."""
    machine = Machine(COST, DEVICE, HOST, DEVICE * BLOCK, RUNNING, 64, BLOCK, order="arrival")
    made = parts_for(machine, "deadline")
    page_bytes = page_bytes_for(BLOCK)
    device, host = allocate_pages(DEVICE + 1, page_bytes), allocate_pages(HOST, page_bytes)
    link = Watched(device, host, 2e6)
    memory = MemoryManager(
        block_size=BLOCK, page_bytes=page_bytes, device_pages=DEVICE + 1, host_pages=HOST,
        num_rows=2 * RUNNING + 1, policy=policy_named("deadline"), link=link,
    )  # fmt: skip
    scheduler = Scheduler(memory, made.scheduler.config, DEVICE * BLOCK)
    assert isinstance(made.runner, VirtualRunner)
    inner = made.runner.inner
    if tags:
        inner = TagRunner(
            device, BLOCK, max_num_seqs=RUNNING, max_num_rows=2 * RUNNING + 1,
            max_blocks_per_row=DEVICE,
        )  # fmt: skip
    runner = VirtualRunner(inner, link, [COST])
    model = TextModel(512 if tags else 32_000, frozenset(), DEVICE * BLOCK, DEVICE * BLOCK)
    return replace(
        made, runner=runner, memory=memory, scheduler=scheduler, link=link, model=model,
        time_s=lambda: link.now_s,
    )  # fmt: skip


def drive(engine: Engine) -> None:
    """Agents in dialogue: each says all that was said, and something new; hints after replies."""
    rng = np.random.default_rng(5)
    said: dict[str, Int32s] = {f"a{n}": rng.integers(0, 512, 70, np.int32) for n in range(12)}
    due = {name: n % 3 for n, name in enumerate(said)}
    for tick in range(14):
        engine.tick(to=float(tick))
        calls = {}
        for name in [name for name, at in due.items() if at == tick]:
            new = rng.integers(0, 512, int(rng.integers(5, 20)), np.int32)
            said[name] = np.concatenate([said[name], new])
            request = engine.agent(name).request(
                said[name], max_tokens=int(rng.integers(3, 24)), ignore_eos=True
            )
            calls[name] = engine.submit(request)
        gaps = {name: int(rng.integers(1, 5)) for name in calls}
        while calls:
            engine.step()
            for name in [name for name, call in calls.items() if call.done]:
                reply = calls.pop(name).result()
                said[name] = np.concatenate([said[name], np.array(reply.token_ids, np.int32)])
                due[name] = tick + gaps[name]
                engine.expect(name, at=due[name])


def test_an_engine_on_tags_and_its_replay_make_the_same_plans(tmp_path: Path) -> None:
    """The engine's calls are recorded while it runs on real pages, every slot of which is checked;
    the replay of the record asks its link for the same copies at the same times."""
    real = parts(tags=True)
    with Engine(real, record=tmp_path / "t.jsonl") as engine:
        drive(engine)
    replayed = parts(tags=False)
    simulation = Simulation(replayed)
    for tick in read_trace(tmp_path / "t.jsonl"):
        simulation.tick(tick)
    assert len(real.link.asked) > 50 and {way for _, way, _, _ in real.link.asked} == {"in", "out"}
    assert real.link.asked == replayed.link.asked
    assert real.memory.counters == replayed.memory.counters
