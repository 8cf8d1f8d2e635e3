"""Actions: what is one, what is none, and that the schema says the same."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalesim.village.actions import LONGEST, SCHEMA, Action, read_action
from scalesim.village.places import PLACES

TASKS = [(place, task) for place in PLACES for task in place.tasks]


@given(st.sampled_from(TASKS), st.integers(1, LONGEST))
def test_an_action_is_read_back(where: tuple[object, str], ticks: int) -> None:
    place, task = where
    action = Action(place, task, ticks)  # type: ignore[arg-type]
    assert read_action(str(action)) == action
    jsonschema.validate(json.loads(str(action)), SCHEMA)


@pytest.mark.parametrize(
    "text",
    [
        "", "I go to the mill.", "[]", "3", "null", "{}", '{"go": "mill"}', "[" * 100_000,
        '{"go": "moon", "to": "rest a while", "for": 3}',
        '{"go": ["mill"], "to": "rest a while", "for": 3}',
        '{"go": "mill", "to": 7, "for": 3}',
        '{"go": "mill", "to": "no", "for": 3}',
        '{"go": "mill", "to": "rest a while", "for": 0}',
        '{"go": "mill", "to": "rest a while", "for": 10}',
        '{"go": "mill", "to": "rest a while", "for": true}',
        '{"go": "mill", "to": "rest a while", "for": 2.5}',
        '{"go": "mill", "to": "rest a while", "for": "2"}',
    ],
)  # fmt: skip
def test_what_is_no_action(text: str) -> None:
    assert read_action(text) is None


@given(st.text())
def test_any_text_may_come(text: str) -> None:
    assert read_action(text) is None or json.loads(text)
