"""Scheduler and memory together, on tags: every text is what its tokens alone say, under every
policy, pool and link, and nothing is left behind."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from scalesim.config import SchedulerConfig
from scalesim.core import FinishReason
from scalesim.errors import NumericalError, PromptTooLongError
from scalesim.memory.eviction.policies import POLICIES
from scalesim.memory.links.thread_link import ThreadLink
from scalesim.scheduler.sequence import Phase, Sequence
from scalesim.testing.bed import Factories
from tests.machines.scheduler_world import (
    VOCAB,
    SchedulerWorld,
    Setting,
    assert_as_expected,
    expected,
)

THREADS = Factories(link=lambda device, host, timeline, seed: ThreadLink(device, host, timeline))
AGENTS, TURNS, PREFIX, FRESH, OUTPUT = 10, 3, 24, 5, 7
FULL = AGENTS * (PREFIX + TURNS * (FRESH + OUTPUT)) // 4  # pages for all state at once
SMALLEST = -(-(PREFIX + TURNS * (FRESH + OUTPUT)) // 4)  # pages for the longest request


def dialogues(
    loop: SchedulerWorld, seed: int, *, turns: int = TURNS, max_iterations: int = 4000
) -> list[Sequence]:
    """Agents with private prefixes take turns; each answer becomes part of the next prompt."""
    rng = random.Random(seed)
    history = {a: [rng.randrange(VOCAB) for _ in range(PREFIX)] for a in range(AGENTS)}
    done: list[Sequence] = []
    for _ in range(turns):
        order = list(history)
        rng.shuffle(order)
        asked = []
        for place, agent in enumerate(order):
            loop.memory.hint([(agent, rng.choice([None, place, place * 3, -4.0, 1e9]))])
        for agent in order:
            history[agent] += [rng.randrange(VOCAB) for _ in range(rng.randint(1, FRESH))]
            count = rng.randint(1, OUTPUT)
            warmth = rng.choice([0.0, 1.0])
            asked.append((agent, loop.add(agent, list(history[agent]), count, temperature=warmth)))
        loop.run(max_iterations, check_every=7)
        for agent, sequence in asked:
            assert_as_expected(sequence, history[agent])
            history[agent] += sequence.output.tolist()
            done.append(sequence)
        loop.memory.timing.now += 1
    return done


@pytest.mark.parametrize("steps_in_flight", [1, 2])
@pytest.mark.parametrize("host", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("pages", [FULL, FULL // 2, FULL // 4, SMALLEST])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_same_texts(policy: str, pages: int, host: float, steps_in_flight: int) -> None:
    loop = SchedulerWorld(Setting(pages, host, policy, steps_in_flight=steps_in_flight, seed=pages))
    done = dialogues(loop, seed=pages + steps_in_flight)
    assert len(done) == AGENTS * TURNS and len(loop.ended) == len(done)
    loop.close()


@pytest.mark.parametrize("steps_in_flight", [1, 2])
@pytest.mark.parametrize("policy", ["deadline", "lru-swap"])
def test_same_texts_with_a_link_on_threads(policy: str, steps_in_flight: int) -> None:
    loop = SchedulerWorld(Setting(FULL // 4, 1.0, policy, steps_in_flight=steps_in_flight), THREADS)
    # tags are computed sooner than anything is loaded
    loop.memory.residency.load_or_recompute.weighs = False
    dialogues(loop, seed=3, max_iterations=100_000)
    assert loop.memory.counters.loaded_pages > 0
    loop.close()


@pytest.mark.parametrize("block_size", [1, 2, 16])
def test_same_texts_for_every_block_size(block_size: int) -> None:
    tokens = PREFIX + TURNS * (FRESH + OUTPUT)
    loop = SchedulerWorld(
        Setting(3 * -(-tokens // block_size), block_size=block_size, steps_in_flight=2)
    )
    dialogues(loop, seed=block_size)
    loop.close()


@pytest.mark.parametrize("seed", range(8))
def test_failing_copies_cost_time_only(seed: int) -> None:
    policy = ("deadline", "lru-swap")[seed % 2]
    setting = Setting(
        FULL // 4, 1.0, policy, failure_rate=0.1, seed=seed, steps_in_flight=1 + seed // 4
    )
    loop = SchedulerWorld(setting)
    dialogues(loop, seed, max_iterations=8000)
    assert loop.memory.counters.failed_transfers > 0
    loop.close()


@pytest.mark.parametrize("seed", range(12))
def test_cancelled_at_any_phase(seed: int) -> None:
    """Whoever is cancelled got a beginning of the right text; the others got all of theirs."""
    rng = random.Random(seed)
    setting = Setting(
        rng.choice([SMALLEST, FULL // 4, FULL // 2]),
        rng.choice([0.5, 1.0]),
        rng.choice(["deadline", "lru-swap"]),
        steps_in_flight=1 + seed % 2,
        seed=seed,
    )
    loop = SchedulerWorld(setting)
    prompts: dict[int, list[int]] = {}
    sequences: list[Sequence] = []
    prefixes = [[rng.randrange(VOCAB) for _ in range(PREFIX)] for _ in range(AGENTS)]
    phases = set()
    for _ in range(400):
        if len(sequences) < 60 and rng.random() < 0.5:
            agent = rng.randrange(AGENTS)
            tail = [rng.randrange(3) for _ in range(rng.randint(1, 9))]
            sequence = loop.add(agent, prefixes[agent] + tail, rng.randint(1, OUTPUT))
            prompts[sequence.id] = prefixes[agent] + tail
            sequences.append(sequence)
        alive = [each for each in sequences if each.phase is not Phase.FINISHED]
        if alive and rng.random() < 0.15:
            victim = rng.choice(alive)
            phases.add(victim.phase)
            loop.scheduler.end(victim, "cancelled", None)
            loop.check()
        loop.iterate()
    loop.run(4000, check_every=5)
    assert len(loop.ended) == len(sequences) == len({each.id for each in loop.ended})
    reasons: set[FinishReason | None] = set()
    for sequence in sequences:
        text = expected(sequence, prompts[sequence.id])
        reasons.add(sequence.finish_reason)
        if sequence.finish_reason == "cancelled":
            assert sequence.output.tolist() == text[: len(sequence.output)]
        else:
            assert_as_expected(sequence, prompts[sequence.id])
    assert reasons == {"cancelled", "length"} and phases
    loop.close()


@pytest.mark.parametrize("steps_in_flight", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_bad_values_end_their_own_request_only(seed: int, steps_in_flight: int) -> None:
    rng = random.Random(seed)
    loop = SchedulerWorld(Setting(FULL // 4, 1.0, steps_in_flight=steps_in_flight, seed=seed))
    loop.bad_tokens = frozenset(rng.sample(range(VOCAB), 6))
    prefixes = [[rng.randrange(VOCAB) for _ in range(PREFIX)] for _ in range(AGENTS)]
    failed = 0
    for _ in range(3):  # the same prompts again: nothing bad may have stayed
        asked = []
        for agent in range(AGENTS):
            prompt = prefixes[agent] + [agent]
            asked.append((prompt, loop.add(agent, prompt, OUTPUT)))
        loop.run(4000, check_every=5)
        for prompt, sequence in asked:
            text = expected(sequence, prompt)
            first = next((i for i, t in enumerate(text) if t in loop.bad_tokens), None)
            assert sequence.output.tolist() == text[:first]
            assert (sequence.finish_reason == "error") == (first is not None)
            assert first is None or isinstance(sequence.error, NumericalError)
            failed += first is not None
    assert failed > 0
    loop.close()


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_eight_templates_in_turn_are_all_hit(steps_in_flight: int) -> None:
    """An agent calls with eight templates in turn: from the second round on, each finds its own."""
    rng = random.Random(0)
    loop = SchedulerWorld(Setting(160, 1.0, steps_in_flight=steps_in_flight))
    templates = [[rng.randrange(VOCAB) for _ in range(32)] for _ in range(8)]
    for turn in range(4):
        for template in templates:
            prompt = template + [rng.randrange(VOCAB) for _ in range(5)]
            sequence = loop.add("planner", prompt, 4)
            loop.run(500)
            assert_as_expected(sequence, prompt)
            assert turn == 0 or sequence.cached_tokens >= 32, (turn, sequence.cached_tokens)
    loop.close()


def test_two_loads_that_exactly_fill_the_pool() -> None:
    """Two requests whose loads take every page, and who both need another to go on: one waits."""
    loop = SchedulerWorld(Setting(8, 4.0, "lru-swap", max_len=32), THREADS)
    prompts = {agent: [agent] * 15 for agent in range(4)}
    for agent, prompt in prompts.items():  # one after the other: the earlier ones go to the host
        loop.add(agent, prompt, 8)
        loop.run(10_000)
    saved = loop.memory.counters.saved_pages
    assert saved > 0
    pair = [loop.add(agent, prompts[agent], 17) for agent in (0, 1)]
    loop.run(10_000, check_every=1)
    for agent, sequence in enumerate(pair):
        assert_as_expected(sequence, prompts[agent])
    assert loop.memory.counters.loaded_pages > 0
    loop.close()


@pytest.mark.parametrize("pages", range(1, 9))
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_pools_of_a_few_pages(policy: str, pages: int) -> None:
    rng = random.Random(pages)
    loop = SchedulerWorld(Setting(pages, 1.0, policy, steps_in_flight=2, seed=pages))
    longest = pages * 4
    asked = []
    for index in range(16):
        count = rng.randint(1, longest - 1)
        prompt = [index % 3] * count
        asked.append((prompt, loop.add(index % 3, prompt, rng.randint(1, longest - count))))
    loop.run(8000, check_every=1)
    for prompt, sequence in asked:
        assert_as_expected(sequence, prompt)
    with pytest.raises(PromptTooLongError, match="raise device_memory"):
        loop.add(0, [1] * longest, 1)
    loop.close()


def test_texts_do_not_depend_on_neighbours_chunks_or_sharing() -> None:
    """The same requests alone, together, in any order, and with any chunk size."""
    rng = random.Random(5)
    shared = [rng.randrange(VOCAB) for _ in range(17)]
    prompts = [shared + [rng.randrange(VOCAB) for _ in range(n % 6 + 1)] for n in range(12)]
    for budget in (2, 5, 64):
        config = SchedulerConfig(
            max_num_seqs=min(budget, 8), max_num_batched_tokens=budget, safe_point_tokens=3
        )
        loop = SchedulerWorld(replace(Setting(40), scheduler=config))
        order = list(range(len(prompts)))
        rng.shuffle(order)
        asked = [(n, loop.add(n % 4, prompts[n], 6)) for n in order]
        loop.run(4000, check_every=5)
        for n, sequence in asked:
            assert_as_expected(sequence, prompts[n])
        loop.close()


def test_swapped_pages_change_the_text() -> None:
    """The oracle is not void: exchange two live pages under a reader that does not verify."""
    loop = SchedulerWorld(Setting(32))
    loop.bed.tags.verify = "off"
    prompt = list(range(20))
    sequence = loop.add(0, prompt, 8)
    while sequence.phase is not Phase.DECODE or len(loop.flights):
        loop.iterate()
    pages = loop.bed.device
    first, second = loop.bed.tags.table[1, 0], loop.bed.tags.table[1, 1]
    pages[[first, second]] = pages[[second, first]]
    loop.run(500)
    assert sequence.output.tolist() != expected(sequence, prompt)
