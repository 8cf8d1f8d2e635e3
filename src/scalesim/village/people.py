"""The people of the village: who they are, and the persona that the model is told."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from scalesim.village.places import BY_NAME, PLACES, Place


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST = _words(
    "Ada Bob Cleo Dan Eve Finn Gus Hana Ivo June Kai Lena Milo Nora Otto Pia Quinn Rosa Sam Tess "
    "Ugo Vera Wim Xenia Yara Zeno Alma Bruno Clara Doris Emil Fay Greta Hugo Ida Jonas Kira Leo "
    "Mara Nils Olga Paul Rita Stan Tom Ursula Vito Wanda"
)
LAST = _words(
    "Ash Brook Clay Dale Elm Ford Gale Hill Lake March Moor North Oak Pike Reed Rowe Shaw Stone "
    "Thorn Vale Ward West Wood York"
)
TRAITS = _words(
    "patient curious stubborn generous shy cheerful careful restless honest proud quiet bold "
    "friendly tired clever kind"
)
TRADES = {
    "miller": "mill", "fisher": "pier", "baker": "bakery", "teacher": "school", "smith": "forge",
    "gardener": "garden", "innkeeper": "tavern", "trader": "market", "farmer": "barn",
    "hunter": "forest", "sexton": "chapel", "washer": "well", "healer": "garden",
    "carpenter": "forge", "ferryman": "pier", "beekeeper": "garden",
}  # fmt: skip
"""Where each trade works."""
KIN = ("sister", "brother", "mother", "father", "aunt", "uncle", "cousin", "son", "daughter")
BONDS = (
    "an old friend", "a good neighbour", "a rival", "hard to please", "easy to talk to",
    "often at your door", "slow to trust", "dear to you", "full of stories",
    "always in a hurry", "someone you owe a favour", "the best cook you know",
)  # fmt: skip
DISLIKES = (
    "loud music", "cold mornings", "long talks", "empty promises", "muddy boots", "heavy rain",
    "early bells", "burnt bread", "bad roads", "idle hands", "the dark", "sour cider",
)  # fmt: skip
SEASONS = ("last spring", "last summer", "last autumn", "last winter", "years ago", "as a child")
HOPES = (
    "a new roof", "a better boat", "a good harvest", "a bigger oven", "a letter from the coast",
    "a quiet year", "a horse of your own", "peace with the neighbours", "a warm coat",
    "a fair price at the market", "a dance at the tavern", "an early spring",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Villager:
    """Who somebody is: what never changes."""

    first: str
    last: str
    trade: str
    kin: str  # with whom they live

    @property
    def name(self) -> str:
        return f"{self.first} {self.last}"

    @property
    def introduction(self) -> str:
        return f"{self.name}, the {self.trade}"

    @property
    def workplace(self) -> Place:
        return BY_NAME[TRADES[self.trade]]


def villagers(number: int, draw: random.Random) -> list[Villager]:
    """``number`` people with names of their own, at most as many as there are names."""
    names = draw.sample(range(len(FIRST) * len(LAST)), number)
    return [
        Villager(
            FIRST[i % len(FIRST)],
            LAST[i // len(FIRST)],
            draw.choice(tuple(TRADES)),
            draw.choice(KIN),
        )
        for i in names
    ]


MOST_VILLAGERS = len(FIRST) * len(LAST)


def persona(
    villager: Villager,
    others: Sequence[Villager],
    draw: random.Random,
    *,
    friends: int = 5,
    memories: int = 5,
) -> str:
    """The text that tells the model whom it speaks for; what it names of other people is drawn from
    ``others``. A friend takes about 12 tokens of the village's model, a memory about 20."""
    home, favourite = draw.choice(PLACES), draw.choice(PLACES)
    first, second = draw.sample(TRAITS, 2)
    lines = [
        f"You are {villager.introduction}, {draw.randint(18, 80)} years old.",
        f"You are {first} and {second}.",
        f"You live near the {home.name} with your {villager.kin}.",
        f"You like to {draw.choice(favourite.tasks)} at the {favourite.name}.",
        f"You do not like {draw.choice(DISLIKES)}.",
        f"You hope for {draw.choice(HOPES)}.",
    ]
    known = draw.sample(others, min(friends, len(others)))
    lines += [f"{other.introduction}, is {draw.choice(BONDS)}." for other in known]
    lines += [_memory(draw, known) for _ in range(memories)]
    return " ".join(lines)


def _memory(draw: random.Random, known: Sequence[Villager]) -> str:
    place = draw.choice(PLACES)
    task, season = draw.choice(place.tasks), draw.choice(SEASONS)
    who = draw.choice(known).first if known else draw.choice(FIRST)
    form = draw.choice((
        "You remember: {season} you went to the {place} with {who} to {task}.",
        "You remember: {season} {who} helped you to {task} at the {place}.",
        "You remember: {season} it rained when you had to {task}, and {who} laughed.",
        "You remember: {season} {who} forgot to {task}, and you were angry.",
        "You remember: {season} you met {who} at the {place} and talked all day.",
        "You remember: {season} you lost a ring at the {place}, and {who} found it.",
    ))  # fmt: skip
    return form.format(season=season, place=place.name, who=who, task=task)
