"""The map of the village: its places, what people do at each, and how long a walk takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

WIDTH, HEIGHT = 60, 18
CELLS_PER_TICK = 10.0
"""How far a person walks in a tick."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place at a cell ``(x, y)`` of the map, and the tasks that people do there, as infinitives
    without "to". ``indoors``: a roof keeps the rain off."""

    name: str
    x: int
    y: int
    indoors: bool
    tasks: tuple[str, ...]


def _places(text: str) -> tuple[Place, ...]:
    """A place a line: name, x, y, ``in`` or ``out``, tasks; lines that are indented go on."""
    found = []
    for line in text.replace("\n  ", " ").strip().splitlines():
        name, x, y, roof, tasks = line.split(" ", 4)
        each = tuple(task.strip() for task in tasks.split(","))
        found.append(Place(name, int(x), int(y), roof == "in", each))
    return tuple(found)


PLACES = _places("""
mill 50 3 in grind the wheat, sift the flour, mend the wheel, fill the sacks, oil the stones,
  weigh the grain, chase the mice
pier 56 14 out mend the nets, paint the boat, sort the fish, wait for the ferry, load the boat,
  watch the water, patch the sail
market 30 9 out sell honey, buy apples, sell bread, buy a lamp, look for cloth, count the coins,
  carry the baskets
school 18 3 in teach the children, read a book, write a letter, draw a map, learn a song,
  clean the board, tell a story
tavern 38 13 in eat some soup, hear the news, play the fiddle, drink cider, rest by the fire,
  sing with friends, wash the cups
garden 8 8 out weed the beds, pick the beans, gather herbs, water the roses, prune the trees,
  plant onions, feed the bees
forge 43 6 in sharpen the tools, shoe the horse, mend the plough, make nails, light the fire,
  forge a hinge, repair the cart
well 26 13 out carry water, wash the shirts, fill the buckets, mend the rope, rest in the shade,
  meet the neighbours, clean the stones
bakery 33 4 in bake bread, knead the dough, bake a cake, sweep the floor, stack the wood,
  heat the oven, cool the loaves
chapel 12 14 in ring the bell, light the candles, mend the roof, sweep the steps, sing a hymn,
  polish the bell, sit in the quiet
barn 4 2 in milk the cows, stack the hay, feed the hens, brush the horse, shear the sheep,
  collect the eggs, fix the door
forest 52 9 out cut wood, look for mushrooms, follow the deer, pick berries, gather bark,
  set the traps, walk under the oaks
""")
BY_NAME = {place.name: place for place in PLACES}


def walk_ticks(start: Place, end: Place) -> int:
    """Ticks that a walk takes: 0 to where one is, else at least 1."""
    return math.ceil(math.hypot(end.x - start.x, end.y - start.y) / CELLS_PER_TICK)


def on_the_way(start: Place, end: Place, share: float) -> tuple[float, float]:
    """The point ``(x, y)`` at ``share`` (0 to 1) of the straight line from ``start`` to ``end``."""
    return start.x + share * (end.x - start.x), start.y + share * (end.y - start.y)
