"""An adapter as its user holds it: a name on an engine, and what that name stands for now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """An adapter's name: the folder it was read from, its size, and the open calls that use it."""

    name: str
    path: str | None  # as it was given; ``None`` for content that was given as tensors
    num_pages: int  # that the adapter takes in a pool
    digest: str  # of its content, in hex; names with one digest share pages
    activated: bool  # in force only from its invocation tokens on
    open_calls: int  # that use this content, under any name
    model: str | None = None  # whose adapter it is; ``None``: the engine's own model's


class AdapterNames(Protocol):
    """The names of an engine's adapters: ``AdapterRegistry``."""

    def info(self, name: str) -> AdapterInfo: ...

    def update(self, name: str, tensors: Mapping[str, Any]) -> None: ...


class Adapter:
    """What ``engine.adapters.add`` returns, and ``engine.adapters[name]``: an adapter's name on an
    engine. ``agent.adapter`` takes it."""

    __slots__ = ("_name", "_names")

    def __init__(self, names: AdapterNames, name: str) -> None:
        self._names, self._name = names, name

    @property
    def name(self) -> str:
        """Its name on the engine."""
        return self._name

    @property
    def info(self) -> AdapterInfo:
        """What the name stands for now. Raises ``AdapterError`` once the adapter was removed."""
        return self._names.info(self.name)

    def update(self, tensors: Mapping[str, Any]) -> None:
        """Give the adapter new weights, from a trainer in this process: a state dict as PEFT saves
        it, A ``[rank, in]`` and B ``[out, rank]`` of each projection, on any device, in any
        floating dtype. The tensors are copied, and cast to the model's dtype; ranks, scales and
        invocation tokens stay.

        Calls handed in after this use the new weights, open calls end with those that they began
        with, and KV of the old weights is never used for the new. Raises ``AdapterError``, with
        nothing changed, for tensors that are missing, unknown, misshaped or not finite, and once
        the adapter was removed.
        """
        self._names.update(self.name, tensors)

    def is_of(self, names: AdapterNames) -> bool:
        """Whether this is an adapter of the engine with these ``names``."""
        return self._names is names

    def __repr__(self) -> str:
        return f"Adapter({self.name!r})"
