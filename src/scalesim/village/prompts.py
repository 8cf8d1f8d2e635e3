"""What the model is asked: the user's messages, the same in the demo and in the training text.

A person's calls are one chat: the persona as its system message, then what happened, a user's
message each, and what the person said to it. A new call adds a message at the end, so all before it
is in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TICK_MINUTES = 10
FIRST_HOUR = 6
DAY_TICKS = 16 * 60 // TICK_MINUTES
"""A day lasts from 6:00 to 22:00; the night is left out."""
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

Weather = Literal["sun", "rain", "wind", "fog", "snow", "clouds"]
WEATHERS: tuple[Weather, ...] = ("sun", "rain", "wind", "fog", "snow", "clouds")


@dataclass(frozen=True, slots=True)
class Moment:
    """A tick of the simulation, and its weather."""

    tick: int
    weather: Weather

    @property
    def hour(self) -> int:
        return FIRST_HOUR + self.tick % DAY_TICKS * TICK_MINUTES // 60

    def __str__(self) -> str:
        day, tick = divmod(self.tick, DAY_TICKS)
        minute = tick * TICK_MINUTES % 60
        return f"{DAYS[day % len(DAYS)]} {self.hour}:{minute:02}, {self.weather}"


def what_next(moment: Moment, place: str, done: str) -> str:
    """Asks for the next action, as JSON."""
    return f"{moment}. You are at the {place} and wanted to {done}. It is done. What next?"


def greet(moment: Moment, place: str, other: str, heard: str) -> str:
    """Asks for the first words to ``other``, who is introduced by name and trade; ``heard`` is the
    newest gossip, a sentence."""
    return f"{moment}. At the {place} you meet {other}. You heard: {heard} What do you say?"


def answer(moment: Moment, place: str, other: str, said: str) -> str:
    """Asks for an answer to what ``other`` said."""
    return f"{moment}. At the {place} {other}, says: {said} What do you say?"


def diary(moment: Moment) -> str:
    """Asks for a line of the diary."""
    return f"{moment}. The day is over. What do you write in your diary?"


def gossip(name: str, task: str, place: str) -> str:
    """News of somebody, as others hear it."""
    return f"{name} went to the {place} to {task}."


def chat(persona: str, turns: Sequence[tuple[str, str]], question: str) -> list[dict[str, str]]:
    """The messages of a call: the persona, earlier questions with their replies, the question."""
    messages = [{"role": "system", "content": persona}]
    for asked, replied in turns:
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": replied})
    return [*messages, {"role": "user", "content": question}]
