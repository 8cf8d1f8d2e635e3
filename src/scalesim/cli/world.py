"""The demo's world: agents with plans of different length. An agent speaks when its action ends.

The world gives prompts and takes texts, and is torch-free. An agent's text determines its next
action and its length, so two runs stay the same only as long as every text is the same.

A tick has several rounds. In the first, all agents speak whose action has ended. Some of them then
address an agent at the same place, and the two talk in turn in the rounds that follow.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from zlib import crc32

from scalesim.cli.names import FIRST, LAST, PLACES, PLANS, TRADES, TRAITS

LONGEST_PLAN = 12
TALK_ROUNDS = 2
_TALKS_ONE_IN = 3  # of those who have just ended an action


@dataclass(frozen=True, slots=True)
class WorldConfig:
    """The sizes of a world; lengths are in tokens, which are bytes. ``memory_len`` bounds an
    agent's memory, whose older half is then forgotten. ``reply_len`` is the most tokens of an
    utterance."""

    agents: int = 64
    seed: int = 0
    persona_len: int = 288
    memory_len: int = 320
    reply_len: int = 12

    @property
    def max_len(self) -> int:
        """The longest prompt with its reply."""
        return self.persona_len + self.memory_len

    @property
    def usual_len(self) -> int:
        """The usual length of a prompt, of an agent with half a memory."""
        return self.persona_len + self.memory_len // 2


@dataclass(slots=True)
class Person:
    name: str
    persona: bytes
    place: str
    plan: str
    free_at: int  # the tick in which the action ends
    events: list[bytes] = field(default_factory=list)

    @property
    def memory_len(self) -> int:
        return sum(map(len, self.events))


@dataclass(frozen=True, slots=True)
class Utterance:
    """An utterance to be generated; ``prompt`` holds token ids, one per byte."""

    who: int
    cue: bytes
    prompt: list[int]


class World:
    """The world's state. ``round`` returns the utterances of the next round, ``hear`` takes their
    texts, and ``expected`` returns when agents will speak next, as far as it is known by then.
    After an empty round, ``end_tick`` begins the next tick."""

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self.now = 0
        self.news = ""
        draw = random.Random(config.seed)
        self.people = [self._person(draw, index) for index in range(config.agents)]
        self._round = 0
        self._talks: list[tuple[int, int]] = []  # (speaker in the next round, listener)
        self._changed: set[int] = set(range(config.agents))

    def opening(self) -> list[Utterance]:
        """An utterance of every agent, to warm the engine up before the clock starts."""
        return [self._utterance(who, b"") for who in range(len(self.people))]

    def round(self) -> list[Utterance]:
        """The utterances of the next round, each independent; empty when the tick is over."""
        self._round += 1
        if self._round == 1:
            due = [i for i, person in enumerate(self.people) if person.free_at <= self.now]
            return [self._utterance(who, self._cue(who)) for who in due]
        if self._round > 1 + TALK_ROUNDS:
            return []
        return [
            self._utterance(who, f" To {self.people[to].name}: ".encode())
            for who, to in self._talks
        ]

    def hear(self, utterances: Sequence[Utterance], texts: Sequence[bytes]) -> None:
        """Take in the texts of this round's utterances."""
        for utterance, text in zip(utterances, texts, strict=True):
            self.people[utterance.who].events.append(utterance.cue + text)
        if self._round == 1:
            for utterance, text in zip(utterances, texts, strict=True):
                self._plan(utterance.who, text)
            self._meet(utterances, texts)
            return
        for (who, to), text in zip(self._talks, texts, strict=True):
            line = f" {self.people[who].name}: ".encode() + text
            self.people[to].events.append(line)
        self._talks = [(to, who) for who, to in self._talks]
        self._changed |= {utterance.who for utterance in utterances}

    def expected(self) -> dict[int, int]:
        """The ticks until an agent speaks, for agents for which that changed; 0 for an agent in a
        talk."""
        rounds_left = 1 + TALK_ROUNDS - self._round
        talking = {who for pair in self._talks for who in pair[: max(rounds_left, 0)]}
        changed, self._changed = sorted(self._changed), set()
        return {
            who: 0 if who in talking else self.people[who].free_at - self.now for who in changed
        }

    def end_tick(self) -> None:
        self.now += 1
        self._round, self._talks = 0, []

    # -- steps of the above -------------------------------------------------------------------

    def _person(self, draw: random.Random, index: int) -> Person:
        round_, name = divmod(index, len(FIRST) * len(LAST))
        full = f"{FIRST[name % len(FIRST)]} {LAST[name // len(FIRST)]}"
        full += f" {round_ + 1}" * bool(round_)
        text = f"{full}, {draw.randint(18, 80)}, {draw.choice(TRADES)}."
        while len(text) < self.config.persona_len:
            text += (
                f" {draw.choice(TRAITS).capitalize()} at the {draw.choice(PLACES)};"
                f" likes to {draw.choice(PLANS)} with {draw.choice(FIRST)}."
            )
        persona = text.encode()[: self.config.persona_len]
        length = draw.randint(1, LONGEST_PLAN)
        plan, place = draw.choice(PLANS), draw.choice(PLACES)
        person = Person(full, persona, place, plan, free_at=draw.randrange(length))
        past = draw.randrange(self.config.memory_len // 2)
        while person.memory_len < past:
            person.events.append(f" Before: {draw.choice(PLANS)}, {draw.choice(PLACES)}.".encode())
        return person

    def _cue(self, who: int) -> bytes:
        person = self.people[who]
        return f" {self.now}. Done: {person.plan}. You: ".encode()

    def _utterance(self, who: int, cue: bytes) -> Utterance:
        person = self.people[who]
        room = self.config.memory_len - len(cue) - self.config.reply_len
        if person.memory_len > room:
            while person.events and person.memory_len > room // 2:
                del person.events[0]
        return Utterance(who, cue, list(person.persona + b"".join(person.events) + cue))

    def _plan(self, who: int, text: bytes) -> None:
        """Choose the agent's next action by a hash of its text, its number and the time; these two
        because a text may be empty."""
        person, dice = self.people[who], self._dice(who, text)
        before = person.plan
        length = 1 + dice % LONGEST_PLAN
        person.plan = PLANS[dice // 16 % len(PLANS)]
        person.place = PLACES[dice // 512 % len(PLACES)]
        person.free_at = self.now + length
        self._changed.add(who)
        self.news = (
            f"{person.name} has done: {before}; goes to the {person.place} to {person.plan} "
            f"for {length} ticks"
        )

    def _meet(self, utterances: Sequence[Utterance], texts: Sequence[bytes]) -> None:
        taken: set[int] = set()
        for utterance, text in zip(utterances, texts, strict=True):
            dice = self._dice(utterance.who, text) >> 16
            near = [i for i in self._neighbours(utterance.who) if i not in taken]
            if utterance.who in taken or not near or dice % _TALKS_ONE_IN:
                continue
            other = near[dice // _TALKS_ONE_IN % len(near)]
            taken |= {utterance.who, other}
            self._changed |= {utterance.who, other}
            self._talks.append((utterance.who, other))
            self.news = (
                f"{self.people[utterance.who].name} meets {self.people[other].name} "
                f"at the {self.people[utterance.who].place}; they talk"
            )

    def _neighbours(self, who: int) -> list[int]:
        place = self.people[who].place
        return [i for i, person in enumerate(self.people) if i != who and person.place == place]

    def _dice(self, who: int, text: bytes) -> int:
        return crc32(b"%d %d %d " % (self.config.seed, self.now, who) + text)
