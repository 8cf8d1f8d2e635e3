"""The training text: days of villagers, as chats in the demo's own prompts, diaries and stories.

A chat follows one person through a part of a day: actions, meetings, the diary. What the person
says comes from the grammar of ``phrases.py``, with the facts of the situation, so a model has to
read its prompt to say it. ``Voice``s change how the same things are said.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from scalesim.village.actions import LONGEST, Action
from scalesim.village.people import Villager, persona, villagers
from scalesim.village.places import PLACES, Place
from scalesim.village.prompts import (
    DAY_TICKS,
    WEATHERS,
    Moment,
    Weather,
    answer,
    chat,
    diary,
    gossip,
    greet,
    what_next,
)
from tools.village.phrases import expand

TOPICS = ("weather", "gossip", "work", "invite", "trade", "feeling")
NOUNS: dict[Weather, str] = {
    "sun": "sun", "rain": "rain", "wind": "wind", "fog": "fog", "snow": "snow",
    "clouds": "grey sky",
}  # fmt: skip
Messages = list[dict[str, str]]


def plain(text: str, draw: random.Random) -> str:
    """The voice of the base model."""
    return text


@dataclass(slots=True)
class Situation:
    """One person's day so far, and what the grammar is told of it."""

    draw: random.Random
    me: Villager
    others: list[Villager]
    moment: Moment
    place: Place
    task: str
    voice: Callable[[str, random.Random], str]
    turns: list[tuple[str, str]] = field(default_factory=list)

    def facts(self, other: Villager, **known: str) -> dict[str, str]:
        """The facts of a sentence to ``other``; ``known`` are those that were already said."""
        draw = self.draw
        second = draw.choice([place for place in PLACES if place is not self.place])
        third, fourth = draw.sample([each for each in self.others if each is not other], 2)
        elsewhere = draw.choice(PLACES)
        hour = self.moment.hour
        return {
            "other": other.first,
            "other_trade": other.trade,
            "my_trade": self.me.trade,
            "place": self.place.name,
            "place2": second.name,
            "task": draw.choice(second.tasks),
            "task2": draw.choice(draw.choice(PLACES).tasks),
            "who": third.first,
            "who2": fourth.first,
            "gplace": elsewhere.name,
            "gtask": draw.choice(elsewhere.tasks),
            "kin": self.me.kin,
            "part": "morning" if hour < 12 else "afternoon" if hour < 18 else "evening",
            "weather_noun": NOUNS[self.moment.weather],
            "weather_line": f"{{weather_{self.moment.weather}}}",
            **known,
        }

    def say(self, text: str, facts: dict[str, str]) -> str:
        facts = {**facts, "weather_line": expand(facts["weather_line"], facts, self.draw)}
        return self.voice(expand(text, facts, self.draw), self.draw)

    def later(self, ticks: int) -> None:
        tick = self.moment.tick + ticks
        same_day = tick // DAY_TICKS == self.moment.tick // DAY_TICKS
        weather = self.moment.weather
        if not same_day or self.draw.random() < 0.1:
            weather = self.draw.choice(WEATHERS)
        self.moment = Moment(tick, weather)


def situation(draw: random.Random, voice: Callable[[str, random.Random], str]) -> Situation:
    me, *others = villagers(14, draw)
    others = [other for other in others if other.first != me.first]
    place = draw.choice(PLACES)
    moment = Moment(draw.randrange(7 * DAY_TICKS), draw.choice(WEATHERS))
    return Situation(draw, me, others, moment, place, draw.choice(place.tasks), voice)


def act(now: Situation) -> None:
    """The next action: work by day, company in the evening, a roof in the rain."""
    draw = now.draw
    asked = what_next(now.moment, now.place.name, now.task)
    wet = now.moment.weather in ("rain", "snow")
    if draw.random() < 0.35 and now.moment.hour < 18:
        place = now.me.workplace
    elif now.moment.hour >= 18 and draw.random() < 0.5:
        place = draw.choice([each for each in PLACES if each.name in ("tavern", "well", "chapel")])
    else:
        place = draw.choice([each for each in PLACES if each.indoors or not wet])
    task = draw.choice([each for each in place.tasks if each != now.task])
    action = Action(place, task, draw.randint(2, LONGEST))
    now.turns.append((asked, str(action)))
    now.place, now.task = place, task
    now.later(action.ticks)


def meet(now: Situation) -> None:
    """A talk of one or two turns, begun by either side."""
    draw = now.draw
    other, topic = draw.choice(now.others), draw.choice(TOPICS)
    greets = draw.random() < 0.5
    if greets and draw.random() < 0.3:
        topic = "gossip"
    facts = now.facts(other)
    theirs = {**facts, "other": now.me.first, "other_trade": now.me.trade, "my_trade": other.trade}
    if greets:
        heard = gossip(facts["who"], facts["gtask"], facts["gplace"])
        asked = greet(now.moment, now.place.name, other.introduction, heard)
        now.turns.append((asked, now.say(_opening(topic, draw), facts)))
        said, reply = now.say(f"{{reply_{topic}}}", theirs), f"{{close_{topic}}}"
    else:
        said, reply = now.say(_opening(topic, draw), theirs), f"{{reply_{topic}}}"
    asked = answer(now.moment, now.place.name, other.introduction, said)
    now.turns.append((asked, now.say(reply, facts)))
    now.later(draw.randint(0, 1))


def _opening(topic: str, draw: random.Random) -> str:
    return f"{{greeting}} {{say_{topic}}}" if draw.random() < 0.8 else f"{{say_{topic}}}"


def write(now: Situation) -> None:
    """The diary, of one or two sentences."""
    facts = now.facts(now.draw.choice(now.others), task=now.task)
    text = " ".join(["{diary}"] * now.draw.randint(1, 2))
    now.turns.append((diary(now.moment), now.say(text, facts)))


def day(draw: random.Random, voice: Callable[[str, random.Random], str] = plain) -> Messages:
    """A chat of one person, with a persona as long as the demo's in a third of them."""
    now = situation(draw, voice)
    long = draw.random() < 0.33
    text = persona(
        now.me,
        now.others,
        draw,
        friends=draw.randint(3, 6) if long else draw.randint(0, 2),
        memories=draw.randint(4, 10) if long else draw.randint(0, 2),
    )
    for _ in range(draw.randint(3, 9)):
        draw.choice((act, meet, meet, meet))(now)
    if draw.random() < 0.4:
        write(now)
    (asked, replied), *_ = now.turns[-1:]
    messages = chat(text, now.turns[:-1], asked)
    return [*messages, {"role": "assistant", "content": replied}]


def tale(draw: random.Random) -> Messages:
    """A story, told by nobody in particular."""
    now = situation(draw, plain)
    facts = now.facts(draw.choice(now.others))
    question = draw.choice(("Tell a story.", "Tell me a story.", f"Tell of the {now.place.name}."))
    story = now.say("{story}", facts)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": story}]


def documents(seed: int) -> Iterator[Messages]:
    """Chats without end: nine days to a tale. The same seed gives the same text."""
    draw = random.Random(seed)
    while True:
        yield tale(draw) if draw.random() < 0.1 else day(draw)
