"""What the demo shows of its village: the map, and where each agent's state lies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable

from rich.text import Text

from scalesim.engine.memory_view import AgentView
from scalesim.village.places import HEIGHT, PLACES, WIDTH
from scalesim.village.world import Village

Cell = tuple[str, str]  # a character and its style
_SIDE_BY_SIDE = 6  # people, at a place
MARKS: dict[str, Cell] = {
    "device": ("█", "green"),
    "coming": ("█", "yellow"),
    "host": ("▒", "blue"),
    "nowhere": ("·", "bright_black"),
}
LEGEND = Text.assemble(
    "next to speak first: ",
    *(piece for name, cell in MARKS.items() for piece in (cell, f" {name}  ")),
)


def draw_map(village: Village, speaking: Collection[int]) -> Text:
    """The places by name, a dot for everyone, and a bright one for those that speak."""
    cells: dict[tuple[int, int], Cell] = {}
    at_place: Counter[str] = Counter()
    for index, person in enumerate(village.people):
        x, y = map(round, person.position(village.now))
        style = "bold bright_yellow" if index in speaking else "cyan"
        if village.now >= person.arrives_at:
            row, column = divmod(at_place[person.place.name], _SIDE_BY_SIDE)
            at_place[person.place.name] += 1
            x, y = x + column, y + 1 + row
        elif index not in speaking:
            style = "magenta"
        if style.startswith("bold") or (x, y) not in cells:
            cells[x, y] = ("●" if index in speaking else "•", style)
    for place in PLACES:
        for offset, char in enumerate(place.name):
            cells[place.x + offset, place.y] = (char, "bold")
    lines = [
        Text.assemble(*(cells.get((x, y), (" ", "")) for x in range(WIDTH + 6)))
        for y in range(HEIGHT)
    ]
    return Text("\n").join(lines)


def residency(view: AgentView) -> str:
    """Where most of an agent's state lies: a name of ``MARKS``."""
    pages = view.pages
    if not pages.total:
        return "nowhere"
    found = {"device": pages.device, "coming": pages.coming, "host": pages.host}
    return max(found, key=found.__getitem__)


def strip(views: Iterable[AgentView], most: int) -> Text:
    """A cell an agent, those that speak next first; a cell for each group of them where that would
    be more than ``most``, by what is most frequent in it."""
    order = sorted(
        views, key=lambda view: math.inf if view.pages.next_use is None else view.pages.next_use
    )
    size = max(math.ceil(len(order) / most), 1)
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    states = [Counter(map(residency, group)).most_common(1)[0][0] for group in groups]
    return Text.assemble(*(MARKS[state] for state in states))
