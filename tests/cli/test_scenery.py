"""What the demo shows: the map has everybody, a strip puts those who speak next first."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from scalesim.cli.scenery import MARKS, draw_map, residency, strip
from scalesim.engine.memory_view import AgentView
from scalesim.memory.owners import AgentPages
from scalesim.village.places import HEIGHT, PLACES
from scalesim.village.world import Village


def views(states: Sequence[tuple[str, float | None]]) -> list[AgentView]:
    """Agents whose three pages all lie in one place, each with its next use."""
    return [
        AgentView(
            str(index),
            AgentPages(**({} if state == "nowhere" else {state: 3}), next_use=next_use),
            0,
            0.0,
        )
        for index, (state, next_use) in enumerate(states)
    ]


def test_the_map_has_every_place_and_everybody() -> None:
    village = Village(10)
    shown = draw_map(village, {3}).plain
    assert len(shown.splitlines()) == HEIGHT
    assert all(place.name in shown for place in PLACES)
    assert (shown.count("•"), shown.count("●")) == (9, 1)


@pytest.mark.parametrize("state", list(MARKS))
def test_where_a_state_lies_has_a_mark(state: str) -> None:
    (view,) = views([(state, 1.0)])
    assert residency(view) == state
    assert strip([view], 8).plain == MARKS[state][0]


def test_those_who_speak_next_come_first() -> None:
    found = strip(views([("host", None), ("nowhere", 7.0), ("device", 2.0)]), 8)
    assert found.plain == "".join(MARKS[each][0] for each in ("device", "nowhere", "host"))


def test_many_agents_share_cells() -> None:
    states = [("device", 1.0)] * 3 + [("host", 2.0)] * 3 + [("nowhere", None)]
    assert strip(views(states), 3).plain == "█▒·"
    assert len(strip(views([("host", 1.0)] * 100), 22).plain) <= 22
