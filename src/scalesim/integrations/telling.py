"""What the adapters of frameworks whose agents act in a known order have in common."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import isawaitable
from typing import Any


def in_order(engine: Any, names: Sequence[str]) -> dict[str, float]:
    """The distances of agents that act in this order within a tick, as ``expect`` takes them. Makes
    the agents known to ``engine``, which takes no hint of a stranger."""
    for name in names:
        engine.agent(name)
    return {name: place / len(names) for place, name in enumerate(names)}


async def done(result: Any) -> None:
    """Wait for what ``AsyncClient`` gives; an engine and a ``Client`` have done it already."""
    if isawaitable(result):
        await result
