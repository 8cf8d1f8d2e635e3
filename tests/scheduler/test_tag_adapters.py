"""Agents with adapters of their own, on tags: every text is what tokens and adapter say, under all
policies and pools, with failing copies, with two steps in flight; nothing is left behind."""

from __future__ import annotations

import random

import pytest

from scalesim.errors import AdapterError
from scalesim.memory.eviction.policies import POLICIES
from scalesim.memory.lease import AttachmentSpec
from scalesim.memory.leases.adapters import AdapterContent, adapter_spec
from scalesim.memory.links.link import InMemorySource, PageSource
from scalesim.scheduler.sequence import Sequence
from scalesim.testing.tag_runner import page_bytes_for
from scalesim.testing.tags import adapter_layout, adapter_pages
from tests.machines.scheduler_world import (
    VOCAB,
    SchedulerWorld,
    Setting,
    assert_as_expected,
)

AGENTS, TURNS, PREFIX, FRESH, OUTPUT = 10, 3, 24, 5, 7
WEIGHTS = (1, 2, 3, 5)  # pages of the adapters
LONGEST = -(-(PREFIX + TURNS * (FRESH + OUTPUT)) // 4)
FULL = AGENTS * LONGEST + sum(WEIGHTS[a % 4] for a in range(AGENTS))
SMALLEST = LONGEST + max(WEIGHTS)


def digest(agent: int) -> bytes:
    return bytes([agent + 1]) * 16


def use(agent: int, start: int = 0) -> AttachmentSpec:
    return adapter_spec(digest(agent), adapter_layout(agent + 1, WEIGHTS[agent % 4]), start)


def add_adapters(loop: SchedulerWorld) -> None:
    for agent in range(AGENTS):
        count = WEIGHTS[agent % 4]
        pages = adapter_pages(agent + 1, count, page_bytes_for(loop.setting.block_size))
        content = AdapterContent(
            digest(agent),
            use(agent).layout,
            count,
            None,
            InMemorySource(pages),
            pages if agent % 2 else None,
        )
        loop.memory.add_adapter(content)
        loop.memory.bind_adapter(agent, digest(agent))


def dialogues(
    loop: SchedulerWorld, seed: int, *, activated: bool, max_iterations: int = 9000
) -> list[Sequence]:
    """Each agent's answers become part of its next prompt. Activated adapters begin anew in each
    turn, where its own tokens do."""
    rng = random.Random(seed)
    world = [rng.randrange(VOCAB) for _ in range(PREFIX)]
    history = {a: world if activated else [rng.randrange(VOCAB) for _ in range(PREFIX)]
               for a in range(AGENTS)}  # fmt: skip
    done: list[Sequence] = []
    for _ in range(TURNS):
        asked = []
        order = rng.sample(range(AGENTS), AGENTS)
        for place, agent in enumerate(order):
            loop.memory.hint([(agent, rng.choice([None, place, place * 3, 1e9]))])
        for agent in order:
            start = len(history[agent]) if activated else 0
            history[agent] = history[agent] + [rng.randrange(VOCAB) for _ in range(FRESH)]
            with_it = None if agent == 0 else use(agent, start)  # agent 0 is the base model's
            sequence = loop.add(agent, history[agent], rng.randint(1, OUTPUT), adapter=with_it)
            asked.append((agent, sequence))
        loop.run(max_iterations, check_every=7)
        for agent, sequence in asked:
            assert_as_expected(sequence, history[agent])
            history[agent] = history[agent] + sequence.output.tolist()
            done.append(sequence)
        loop.memory.timing.now += 1
    return done


def close(loop: SchedulerWorld) -> None:
    for agent in range(AGENTS):
        loop.memory.remove_adapter(digest(agent))
    loop.close()


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize(("host", "steps_in_flight"), [(0.0, 2), (1.0, 1), (1.0, 2)])
@pytest.mark.parametrize("pages", [FULL // 2, FULL // 4, SMALLEST])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_same_texts(
    policy: str, pages: int, host: float, steps_in_flight: int, activated: bool
) -> None:
    loop = SchedulerWorld(
        Setting(
            pages,
            host,
            policy,
            steps_in_flight=steps_in_flight,
            seed=pages,
            max_len=LONGEST * 4,
        )
    )
    add_adapters(loop)
    done = dialogues(loop, pages + steps_in_flight, activated=activated)
    if activated and pages == FULL // 2:
        shared = [each for each in done if each.cached_tokens >= PREFIX // 4 * 4]
        assert len(shared) > len(done) // 2
    close(loop)


@pytest.mark.parametrize("seed", range(6))
def test_failing_copies_cost_time_only(seed: int) -> None:
    policy = ("deadline", "lru-swap")[seed % 2]
    setting = Setting(
        FULL // 4,
        1.0,
        policy,
        failure_rate=0.05,  # of tickets: no adapter fails over and over, which ends a request
        seed=seed,
        steps_in_flight=1 + seed // 3,
        max_len=LONGEST * 4,
    )
    loop = SchedulerWorld(setting)
    add_adapters(loop)
    dialogues(loop, seed, activated=seed % 2 == 1)
    assert loop.memory.counters.failed_transfers > 0
    close(loop)


def test_a_source_that_fails_ends_its_own_requests_only() -> None:
    class Gone(PageSource):
        def read(self) -> None:
            raise AdapterError("the folder is gone")

    loop = SchedulerWorld(Setting(FULL // 4, 0.0, seed=1, max_len=LONGEST * 4))
    add_adapters(loop)
    loop.memory.remove_adapter(digest(3))
    content = AdapterContent(digest(3), use(3).layout, WEIGHTS[3], None, Gone())  # type: ignore[arg-type]
    loop.memory.add_adapter(content)
    prompt = list(range(20))
    sequences = [loop.add(agent, prompt, 5, adapter=use(agent)) for agent in (2, 3, 4, 3)]
    unknown = loop.add(9, prompt, 5, adapter=adapter_spec(b"?" * 16, 0))
    loop.run(2000, check_every=1)
    for sequence in (sequences[1], sequences[3]):
        assert isinstance(sequence.error, AdapterError) and "gone" in str(sequence.error)
    assert isinstance(unknown.error, AdapterError)
    for sequence in (sequences[0], sequences[2]):
        assert_as_expected(sequence, prompt)
    close(loop)


def test_an_agent_that_changed_its_adapter_is_told_why_it_misses() -> None:
    world = SchedulerWorld(Setting())
    prompt = [each % 7 for each in range(20)]
    for adapter in (None, world.add_adapter(2)):
        world.add(1, prompt, 2, adapter=adapter)
        world.run(200)
    assert world.memory.misses.last[1].cause == "adapter changed"
    world.add(1, [5, *prompt], 2, adapter=adapter)
    world.run(200)
    assert world.memory.misses.last[1].cause == "prompt changed"
    world.close()
