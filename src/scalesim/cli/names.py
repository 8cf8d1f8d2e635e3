"""The words that the demo's world is made of."""

from __future__ import annotations

FIRST = (
    "Ada Bob Cleo Dan Eve Finn Gus Hana Ivo June Kai Lena Milo Nora Otto Pia Quinn Rosa Sam Tess "
    "Ugo Vera Wim Xenia Yara Zeno"
).split()
LAST = "Ash Brook Clay Dale Elm Ford Gale Hill".split()
PLACES = ("mill", "pier", "market", "school", "tavern", "garden", "forge", "well")
TRADES = (
    "miller fisher baker teacher smith weaver potter healer carter painter beekeeper clerk"
).split()
TRAITS = (
    "patient curious stubborn generous shy cheerful careful restless honest proud quiet bold"
).split()
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
