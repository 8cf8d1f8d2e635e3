"""What the village knows: the weather, and the newest gossip."""

from __future__ import annotations

import random

from scalesim.village.prompts import WEATHERS, Weather, gossip

_SPELL_TICKS = 18
"""How long a weather lasts."""


def weather(seed: int, tick: int) -> Weather:
    """The weather of a tick; a new one every three hours."""
    return random.Random(f"{seed} {tick // _SPELL_TICKS}").choice(WEATHERS)


class Gossip:
    """What was done lately, newest first, as sentences; a person hears what is not their own."""

    def __init__(self, most: int = 32) -> None:
        self._most = most
        self._heard: list[tuple[int, str]] = []  # (whom it is about, sentence)

    def spread(self, who: int, name: str, task: str, place: str) -> None:
        self._heard.insert(0, (who, gossip(name, task, place)))
        del self._heard[self._most :]

    def for_a_talk(self, one: int, other: int) -> str:
        """The newest sentence that is about neither; the same for everybody who asks."""
        about = (sentence for who, sentence in self._heard if who not in (one, other))
        return next(about, "The days are quiet.")
