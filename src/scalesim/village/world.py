"""The village's world: people walk, work, meet and talk; whoever runs it brings the texts.

A tick has several rounds. In the first, everyone whose task has ended is asked what comes next, and
everyone who arrives somewhere greets somebody who is there. In the next two, that person answers,
and the first one answers in turn. A text decides what happens, so two runs stay the same only as
long as every text is the same. Prompts, meetings and hints are functions of seed and texts alone.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from scalesim.village.actions import Action, read_action
from scalesim.village.news import Gossip, weather
from scalesim.village.people import Villager, persona, villagers
from scalesim.village.places import PLACES, Place, on_the_way, walk_ticks
from scalesim.village.prompts import Moment, answer, chat, greet, what_next

MOST_TURNS = 6
"""Turns that a person remembers; at more, the older half is forgotten."""
TALK_ROUNDS = 3
ROUND_TICKS = 1 / TALK_ROUNDS
"""What a round takes of its tick, by the village's clock."""
REST_TICKS = 3
"""How long a person goes on with a task after a text that is no action."""


@dataclass(slots=True)
class Inhabitant:
    """A person's state. The walk to ``place`` ends at tick ``arrives_at``, the task at
    ``free_at``; ``last_talk`` is the tick of the last talk that the person did not begin."""

    villager: Villager
    persona: str
    came_from: Place
    place: Place
    task: str
    left_at: int = 0
    arrives_at: int = 0
    free_at: int = 0
    last_talk: int = -1
    turns: list[tuple[str, str]] = field(default_factory=list)

    def position(self, now: int) -> tuple[float, float]:
        """Where the person is on the map at tick ``now``."""
        if now >= self.arrives_at:
            return self.place.x, self.place.y
        share = (now - self.left_at) / (self.arrives_at - self.left_at)
        return on_the_way(self.came_from, self.place, share)

    def is_there(self, place: Place, tick: int) -> bool:
        """Whether somebody who arrives at ``tick`` meets the person at ``place``: there already,
        and busy still, as far as is known now."""
        return self.place is place and self.arrives_at < tick < self.free_at


@dataclass(frozen=True, slots=True)
class Question:
    """A text that is asked of person ``who``: the next action, or words of a talk. ``to`` is the
    one who is spoken to."""

    who: int
    kind: Literal["act", "say"]
    text: str
    to: int | None = None


class Village:
    """The state of the village. ``round`` gives the questions of the next round, each independent
    of the others, ``hear`` takes the texts that answer them, and ``expected`` says when people will
    be asked next, as far as that is known. After an empty round, ``end_tick`` begins the next tick.
    Everybody acts at tick 0, and is in the middle of that action. ``now`` is the tick, ``clock``
    has the rounds too."""

    def __init__(self, agents: int = 64, seed: int = 0) -> None:
        draw = random.Random(seed)
        self.seed, self.now = seed, 0
        self.invalid_actions = self.actions = 0
        everybody = villagers(agents, draw)
        self.people = [self._person(draw, one, everybody) for one in everybody]
        self._begun = random.Random(draw.random())
        self._gossip = Gossip()
        self._round = 0
        self._talks: list[tuple[int, int]] = []  # (who speaks in the next round, to whom)
        self._said: dict[int, str] = {}  # the last words of those who talk
        self._told: dict[int, float] = {}  # next uses as told last
        self._asked: list[Question] = []  # those of this round, until they are heard

    @property
    def moment(self) -> Moment:
        return Moment(self.now, weather(self.seed, self.now))

    @property
    def clock(self) -> float:
        """When the next round is, in ticks from the beginning."""
        return self.now + min(self._round, TALK_ROUNDS) * ROUND_TICKS

    def messages(self, question: Question) -> list[dict[str, str]]:
        """The chat that asks a question."""
        person = self.people[question.who]
        return chat(person.persona, person.turns, question.text)

    def round(self) -> list[Question]:
        """The questions of the next round; empty when the tick is over."""
        self._asked = self._next_round()
        return self._asked

    def _next_round(self) -> list[Question]:
        self._round += 1
        if self._round == 1:
            acts = [
                self._what_next(i) for i, one in enumerate(self.people) if one.free_at <= self.now
            ]
            self._talks = self._meetings()
            return acts + [self._greeting(one, other) for one, other in self._talks]
        if self._round > TALK_ROUNDS:
            return []
        return [self._answer(one, other) for one, other in self._talks]

    def hear(self, questions: Sequence[Question], texts: Sequence[str]) -> None:
        """Take in the texts of this round's questions, in their order."""
        for question, text in zip(questions, texts, strict=True):
            person = self.people[question.who]
            self._told.pop(question.who, None)  # a call uses up what was said of it
            if len(person.turns) >= MOST_TURNS:
                del person.turns[: MOST_TURNS // 2]
            person.turns.append((question.text, text))
            if question.kind == "act":
                self._act(question.who, read_action(text))
            else:
                self._said[question.who] = text
        self._talks = [(other, one) for one, other in self._talks]
        self._asked = []

    def expected(self) -> dict[int, float]:
        """When people are asked next, in ticks from the beginning: of those for whom that changed,
        or who were heard since. Between ``round`` and ``hear``, when those that are asked now are
        asked again, at the earliest."""
        due = self._next_uses()
        changed = {who: at for who, at in due.items() if self._told.get(who) != at}
        self._told |= changed
        return changed

    def end_tick(self) -> None:
        self.now += 1
        self._round, self._talks = 0, []
        self._said.clear()

    # -- steps of the above -------------------------------------------------------------------

    def _person(
        self, draw: random.Random, villager: Villager, everybody: Sequence[Villager]
    ) -> Inhabitant:
        others = [other for other in everybody if other is not villager]
        text = persona(villager, others, draw, friends=6, memories=8)
        place = draw.choice(PLACES)
        return Inhabitant(villager, text, place, place, draw.choice(place.tasks))

    def _what_next(self, who: int) -> Question:
        person = self.people[who]
        return Question(who, "act", what_next(self.moment, person.place.name, person.task))

    def _greeting(self, who: int, other: int) -> Question:
        heard = self._gossip.for_a_talk(who, other)
        met = self.people[other].villager.introduction
        return Question(
            who, "say", greet(self.moment, self.people[who].place.name, met, heard), other
        )

    def _answer(self, who: int, other: int) -> Question:
        met, said = self.people[other].villager.introduction, self._said[other]
        return Question(
            who, "say", answer(self.moment, self.people[who].place.name, met, said), other
        )

    def _act(self, who: int, action: Action | None) -> None:
        person = self.people[who]
        self.actions += 1
        if action is None:
            self.invalid_actions += 1
            action = Action(person.place, person.task, REST_TICKS)
        person.came_from, person.place, person.task = person.place, action.place, action.task
        person.left_at = self.now
        if self.now == 0:
            person.came_from, ticks = person.place, self._begun.randint(1, action.ticks)
        else:
            ticks = action.ticks
        person.arrives_at = self.now + walk_ticks(person.came_from, person.place)
        person.free_at = person.arrives_at + ticks
        self._gossip.spread(who, person.villager.first, action.task, action.place.name)

    def _meetings(self) -> list[tuple[int, int]]:
        """Who arrives now, and whom they meet."""
        visits = self._visits(self.now)
        return [(one, other) for at, one, other in visits if at == self.now]

    def _visits(self, until: int | None = None) -> list[tuple[int, int, int]]:
        """(tick, who arrives, whom they meet) of those on their way that arrive by ``until``, as
        far as known now: of those who are there, the one whose last talk is longest ago."""
        there: Mapping[str, list[int]] = defaultdict(list)
        for index, person in enumerate(self.people):
            there[person.place.name].append(index)
        arrivals = sorted(
            (person.arrives_at, index)
            for index, person in enumerate(self.people)
            if self.now <= person.arrives_at and person.left_at < person.arrives_at
            if until is None or person.arrives_at <= until
        )
        visits: list[tuple[int, int, int]] = []
        talked = {index: person.last_talk for index, person in enumerate(self.people)}
        for at, index in arrivals:
            place = self.people[index].place
            near = [
                other
                for other in there[place.name]
                if self.people[other].is_there(place, at) and talked[other] < at
            ]
            if near:
                met = min(near, key=lambda other: (talked[other], other))
                talked[met] = at
                visits.append((at, index, met))
        if until is not None:
            for at, _, met in visits:
                self.people[met].last_talk = at
        return visits

    def _next_uses(self) -> dict[int, float]:
        """When each person is asked next, in ticks from the beginning."""
        rounds_left = max(TALK_ROUNDS - self._round, 0)
        talks = [(other, one) for one, other in self._talks] if self._asked else self._talks
        talking = {
            one: self.clock + later
            for pair in talks
            for one, later in zip(pair, (0.0, ROUND_TICKS)[:rounds_left], strict=False)
        }
        over = self.now if self._round == 0 else self.now + 1  # this tick's arrivals have greeted
        due: dict[int, float] = {
            index: max(person.free_at, self.now) for index, person in enumerate(self.people)
        }
        for at, index, met in self._visits():
            if at >= over:
                due[index], due[met] = min(due[index], at), min(due[met], at + ROUND_TICKS)
        acting = {question.who: self.now + 1 for question in self._asked if question.kind == "act"}
        return due | acting | talking
