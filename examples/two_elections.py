"""One village, two elections: a forked world with other news, beside the one that it came from.

    python examples/two_elections.py [MODEL]

A week before the election the village is forked. In one world a scandal is on the front page. A
third world hears the same news as the first: it must vote the same, or the difference would be
chance.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from small_model import open_engine

NAMES = ("Ada", "Bob", "Eve", "Finn", "Gus", "Ida", "Kim", "Lou")
PARTIES = ("the Greens", "the Blues")
TASTES = ("likes forests", "owns a mill", "mistrusts everyone", "sings in the choir")


@dataclass
class Village:
    """Neighbours who hear the news, talk about it and vote. ``world`` is an engine, or a fork."""

    world: Any
    heard: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in NAMES})

    def day(self, news: str) -> None:
        """All hear the news, and say what they think of it."""
        requests = []
        for index, name in enumerate(NAMES):
            self.heard[name].append(f"News: {news}")
            prompt = self.prompt(index) + f"{name} says:"
            requests.append(self.world.agent(name).request(prompt, max_tokens=12, temperature=0.8))
        for name, reply in zip(NAMES, self.world.run(requests), strict=True):
            self.heard[name].append(f"{name} says: {reply.text}")
        self.world.tick()

    def vote(self) -> dict[str, str]:
        """Who votes for whom."""
        votes = {}
        for index, name in enumerate(NAMES):
            prompt = self.prompt(index) + f"{name} votes for "
            choice = self.world.agent(name).choose(prompt, PARTIES, by="mean")
            votes[name] = PARTIES[choice.index]
        return votes

    def prompt(self, index: int) -> str:
        name, taste = NAMES[index], TASTES[index % len(TASTES)]
        return "\n".join([f"{name} {taste}.", *self.heard[name], ""])

    def moved_to(self, world: Any) -> Village:
        """The same village in ``world``, a fork of its own."""
        return Village(world, {name: list(heard) for name, heard in self.heard.items()})


def main(model: str | None = None) -> list[dict[str, str]]:
    """The votes of the village, of the one with the scandal, and of the control."""
    with open_engine(model, device_memory="8MB") as engine:
        village = Village(engine)
        for day in range(3):
            village.day(f"{day + 3} days of sun; the harvest is good.")
        with engine.fork_world() as scandal, engine.fork_world() as control:
            worlds = [village, village.moved_to(scandal), village.moved_to(control)]
            for day in range(2):
                for number, each in enumerate(worlds):
                    affair = "The Greens' mayor sold the forest!" if number == 1 else "All is calm."
                    each.day(f"{2 - day} days to the election. {affair}")
            votes = [each.vote() for each in worlds]
            assert worlds[2].heard == village.heard, "the control is exact"
    return votes


if __name__ == "__main__":
    ours, scandal, control = main(*sys.argv[1:2])
    for title, votes in (("calm", ours), ("scandal", scandal), ("control", control)):
        print(f"{title:8}", dict(sorted(Counter(votes.values()).items())))
    moved = [name for name in NAMES if ours[name] != scandal[name]]
    print("changed their minds:", ", ".join(moved) or "nobody")
    print("the control votes like the village:", ours == control)
