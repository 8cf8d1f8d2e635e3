"""The words that the demo's world is made of."""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST = words(
    "Ada Bob Cleo Dan Eve Finn Gus Hana Ivo June Kai Lena Milo Nora Otto Pia Quinn Rosa Sam Tess "
    "Ugo Vera Wim Xenia Yara Zeno"
)
LAST = words("Ash Brook Clay Dale Elm Ford Gale Hill")
PLACES = ("mill", "pier", "market", "school", "tavern", "garden", "forge", "well")
TRADES = words(
    "miller fisher baker teacher smith weaver potter healer carter painter beekeeper clerk"
)
TRAITS = words(
    "patient curious stubborn generous shy cheerful careful restless honest proud quiet bold"
)
PLANS = (
    "bake bread",
    "mend nets",
    "carry water",
    "teach the children",
    "sharpen tools",
    "weed the beds",
    "count the stores",
    "paint a boat",
    "repair the roof",
    "gather herbs",
    "write letters",
    "rest in the shade",
    "sell honey",
    "tell stories",
)
