"""Actions: what a person does next, as the JSON that the model writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from scalesim.village.places import BY_NAME, PLACES, Place

LONGEST = 9
TASK_CHARS = 24
"""The most characters of a task."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "go": {"enum": [place.name for place in PLACES]},
        "to": {"type": "string", "pattern": f"^[a-z][a-z ]{{2,{TASK_CHARS - 2}}}[a-z]$"},
        "for": {"type": "integer", "minimum": 1, "maximum": LONGEST},
    },
    "required": ["go", "to", "for"],
    "additionalProperties": False,
}
"""Of an action's text."""


@dataclass(frozen=True, slots=True)
class Action:
    """Go to ``place``, and do ``task`` there for ``ticks`` ticks."""

    place: Place
    task: str
    ticks: int

    def __str__(self) -> str:
        return json.dumps({"go": self.place.name, "to": self.task, "for": self.ticks})


def read_action(text: str) -> Action | None:
    """The action that a text describes; ``None`` for a text that is none: a model may write
    anything."""
    try:
        found = json.loads(text)
        place, task, ticks = BY_NAME[found["go"]], found["to"], found["for"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not (isinstance(task, str) and 4 <= len(task) <= TASK_CHARS):
        return None
    if type(ticks) is not int or not 1 <= ticks <= LONGEST:
        return None
    return Action(place, task, ticks)
