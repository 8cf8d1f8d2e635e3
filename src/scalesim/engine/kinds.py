"""The kinds of state that an engine knows: its own, tensors, and those that its user registers."""

from __future__ import annotations

import threading
from typing import Any

from scalesim.checks import instance, shown, text
from scalesim.errors import StateError
from scalesim.memory.kinds import StateKind


class Kinds:
    """Kinds by name. From any thread."""

    def __init__(self) -> None:
        self._by_name: dict[str, StateKind] = {}
        self._lock = threading.RLock()  # for ``add``; readers see one dictionary or the next

    def add(self, kind: StateKind) -> None:
        """``Engine.register_kind``."""
        instance("kind", kind, StateKind, "give an instance of your class", StateError)
        name = text("kind.name", getattr(kind, "name", None), StateError, empty=False)
        with self._lock:
            if name not in self._by_name:
                self._by_name = {name: kind, **self._by_name}
            elif self._by_name[name] is not kind:
                raise StateError(
                    f"a kind {shown(name)} is registered already; give yours another name"
                )

    def of(self, value: Any) -> StateKind:
        """The kind that takes ``value``, the newest first. Raises ``StateError``."""
        for kind in self._by_name.values():
            if kind.form(value) is not None:
                return kind
        raise StateError(
            f"{shown(value)} is given; state is a tensor, a numpy array, or what a kind of yours "
            "takes: register_kind()"
        )

    def named(self, name: str) -> StateKind:
        """The kind of this name. Raises ``StateError``."""
        if name not in self._by_name:
            raise StateError(f"no kind {name!r} is registered here: call register_kind() with it")
        return self._by_name[name]
