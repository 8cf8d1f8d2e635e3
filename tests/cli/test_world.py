"""The demo's world by itself: it repeats, its prompts grow at the end, its hints come true."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

from scalesim.cli.world import LONGEST_PLAN, World, WorldConfig


def play(world: World, ticks: int, salt: str = "") -> list[tuple[int, int, bytes]]:
    """Texts are made from who and when. Everything said: (tick, who, prompt)."""
    said = []
    for _ in range(ticks):
        while utterances := world.round():
            texts = [f"{utterance.who} {world.now}{salt}".encode() for utterance in utterances]
            said += [
                (world.now, utterance.who, bytes(utterance.prompt)) for utterance in utterances
            ]
            world.hear(utterances, texts)
            world.expected()
        world.end_tick()
    return said


def test_the_world_repeats_and_texts_decide() -> None:
    config = WorldConfig(agents=20, seed=3)
    first, again = play(World(config), 20), play(World(config), 20)
    assert first == again
    assert first != play(World(config), 20, salt="!")
    assert first != play(World(WorldConfig(agents=20, seed=4)), 20)


def test_a_fifth_speaks_and_prompts_fit() -> None:
    config = WorldConfig()
    said = play(World(config), 50)
    speakers = Counter(tick for tick, _ in {(tick, who) for tick, who, _ in said})
    assert 0.15 < sum(speakers.values()) / (50 * config.agents) < 0.27
    assert max(len(prompt) for _, _, prompt in said) + config.reply_len <= config.max_len
    assert len({prompt[:24] for _, _, prompt in said}) == config.agents  # private from the start


def test_prompts_extend_the_last_one_until_something_is_forgotten() -> None:
    config = WorldConfig(agents=16)
    prompts = defaultdict(list)
    for _, who, prompt in play(World(config), 60):
        prompts[who].append(prompt)
    pairs = [pair for each in prompts.values() for pair in pairwise(each)]
    grown = sum(new.startswith(old) for old, new in pairs)
    assert 0.7 * len(pairs) < grown < len(pairs)
    assert all(new[: config.persona_len] == old[: config.persona_len] for old, new in pairs)


def test_hints_come_true_but_for_those_who_are_talked_to() -> None:
    world = World(WorldConfig())
    due: dict[int, int] = {}
    true = 0
    for tick in range(40):
        number = 0
        while utterances := world.round():
            number += 1
            for utterance in utterances:
                if tick:
                    assert due[utterance.who] == tick  # it was always said, if only a round before
                true += number == 1
            world.hear(utterances, [b"x%d" % utterance.who for utterance in utterances])
            hints = world.expected()
            assert all(0 <= hint <= LONGEST_PLAN for hint in hints.values())
            due |= {who: tick + hint for who, hint in hints.items()}
        world.end_tick()
        assert all(at > tick for at in due.values()), "a promise was not kept"
    assert true > 300


def test_many_agents_have_names_of_their_own() -> None:
    world = World(WorldConfig(agents=500))
    assert len({person.name for person in world.people}) == 500
