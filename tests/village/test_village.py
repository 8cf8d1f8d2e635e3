"""The village by itself: it repeats, its chats grow at the end, its hints come true."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from scalesim.village.actions import LONGEST, Action
from scalesim.village.people import MOST_VILLAGERS, villagers
from scalesim.village.places import HEIGHT, PLACES, WIDTH, walk_ticks
from scalesim.village.world import MOST_TURNS, Question, Village

Chat = list[dict[str, str]]


def reply(question: Question, draw: random.Random) -> str:
    """What a model might say: an action now and then no action."""
    if question.kind == "say":
        return f"Good day, {draw.randint(0, 99)}."
    place = draw.choice(PLACES)
    action = Action(place, draw.choice(place.tasks), draw.randint(1, LONGEST))
    return str(action) if draw.random() < 0.9 else "I do not know."


def live(village: Village, ticks: int, seed: int = 0) -> list[tuple[int, Question, Chat]]:
    """Everything that was asked: (tick, question, chat). Texts are drawn by ``seed``."""
    draw, asked = random.Random(seed), []
    for _ in range(ticks):
        while questions := village.round():
            asked += [(village.now, each, village.messages(each)) for each in questions]
            village.hear(questions, [reply(question, draw) for question in questions])
            village.expected()
        village.end_tick()
    return asked


def test_the_village_repeats_and_texts_decide() -> None:
    first = live(Village(20, seed=3), 30)
    assert first == live(Village(20, seed=3), 30)
    assert first != live(Village(20, seed=3), 30, seed=1)
    assert first != live(Village(20, seed=4), 30)


def test_reading_the_hints_changes_nothing() -> None:
    told, untold = Village(16, seed=1), Village(16, seed=1)
    draws = random.Random(5), random.Random(5)
    for _ in range(20):
        while questions := told.round():
            assert questions == untold.round()
            told.hear(questions, [reply(each, draws[0]) for each in questions])
            untold.hear(questions, [reply(each, draws[1]) for each in questions])
            told.expected()
        assert untold.round() == []
        told.end_tick()
        untold.end_tick()


def test_hints_come_true() -> None:
    """Whoever is asked was expected in this very round, and whoever is expected is asked."""
    village, draw = Village(48, seed=2), random.Random(2)
    due: dict[int, float] = {}
    for tick in range(40):
        while True:
            at = village.clock
            questions = village.round()
            expected = {who for who, told in due.items() if told == pytest.approx(at)}
            if not questions:
                break
            if tick:
                assert {question.who for question in questions} == expected
            due |= village.expected()  # when they are asked again
            village.hear(questions, [reply(question, draw) for question in questions])
            due |= village.expected()
        village.end_tick()
        due |= village.expected()
        assert min(due.values()) >= tick + 1  # nobody is left who was expected in this tick


def test_those_who_are_asked_are_told_when_they_are_asked_again() -> None:
    """Of words that is known: after a greeting, when it is answered; of an action only that it is
    no sooner than the next tick."""
    village, draw, told_of_talks = Village(48, seed=2), random.Random(2), 0
    for tick in range(20):
        while questions := village.round():
            told = village.expected()
            village.hear(questions, [reply(question, draw) for question in questions])
            then = village.expected()
            for question in questions:
                who = question.who
                if question.kind == "act" and tick:
                    assert told[who] == tick + 1 <= then[who]
                elif question.kind == "say" and then[who] < tick + 1:
                    assert told[who] == pytest.approx(then[who])
                    told_of_talks += 1
        village.end_tick()
    assert told_of_talks > 20


def test_a_third_speaks_in_a_tick_and_most_of_it_is_talk() -> None:
    asked = [each for each in live(Village(64), 60) if each[0]]
    speakers = len({(tick, question.who) for tick, question, _ in asked})
    assert 0.2 < speakers / (59 * 64) < 0.5
    kinds = Counter(question.kind for _, question, _ in asked)
    assert kinds["act"] > 300 and kinds["say"] > kinds["act"]


def test_a_chat_extends_the_last_one_until_something_is_forgotten() -> None:
    chats = defaultdict(list)
    for _, question, messages in live(Village(24), 60):
        chats[question.who].append(messages)
    assert len(chats) == 24 and len({each[0][0]["content"] for each in chats.values()}) == 24
    pairs = [pair for each in chats.values() for pair in pairwise(each)]
    grown = sum(new[: len(old)] == old for old, new in pairs)
    assert 0.6 * len(pairs) < grown < len(pairs)
    assert all(new[0] == old[0] for old, new in pairs)
    assert max(len(new) for _, new in pairs) == 2 + 2 * MOST_TURNS


def test_talks_are_between_people_at_one_place() -> None:
    """The first greets, the other answers, the first answers: three questions a meeting."""
    village, draw, meetings = Village(32, seed=7), random.Random(0), 0
    for _ in range(30):
        pairs: list[frozenset[int]] = []
        while questions := village.round():
            says = [each for each in questions if each.kind == "say"]
            for each in says:
                assert each.to is not None and each.to != each.who
                one, other = village.people[each.who], village.people[each.to]
                assert one.place is other.place
                assert one.position(village.now) == other.position(village.now)
                pairs.append(frozenset((each.who, each.to)))
            village.hear(questions, [reply(question, draw) for question in questions])
        assert set(Counter(pairs).values()) <= {3}
        meetings += len(set(pairs))
        village.end_tick()
    assert meetings > 50


def test_a_text_that_is_no_action_is_counted_and_changes_nothing() -> None:
    village = Village(8)
    before = [(one.place, one.task) for one in village.people]
    questions = village.round()
    village.hear(questions, ["Well."] * 8)
    assert (village.actions, village.invalid_actions) == (8, 8)
    assert before == [(one.place, one.task) for one in village.people]
    assert set(village.expected().values()) <= {1, 2, 3}


def test_walks_stay_on_the_map_and_take_their_time() -> None:
    for start in PLACES:
        assert 0 <= start.x < WIDTH and 0 <= start.y < HEIGHT
        for end in PLACES:
            ticks = walk_ticks(start, end)
            assert (ticks == 0) == (start is end) and ticks == walk_ticks(end, start) <= 6


def test_everybody_has_a_name_of_their_own() -> None:
    people = villagers(MOST_VILLAGERS, random.Random(0))
    assert len({person.name for person in people}) == MOST_VILLAGERS > 1000


def test_who_was_asked_is_told_anew_also_at_the_same_time() -> None:
    """A call uses up what was said of it: whoever began a talk is told again of its end."""
    village = Village(16, seed=3)
    village.hear(questions := village.round(), [""] * len(questions))
    village.expected()
    for _ in range(30):
        questions = village.round()
        if not questions:
            village.end_tick()
            continue
        asked = {question.who for question in questions}
        village.hear(questions, ["Hello."] * len(questions))
        assert asked <= village.expected().keys()
