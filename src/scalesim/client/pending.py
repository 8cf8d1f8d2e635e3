"""Hints that wait to be sent: many become one request, and of an agent the last one counts."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from scalesim.checks import number, reading, refuse
from scalesim.client.wire import Ask, name_of
from scalesim.errors import RequestError

MAX_SENT = 50_000
"""Hints of one request; the server takes twice as many."""


class PendingHints:
    """From any thread. ``take`` gives the next request, until nothing waits any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hints: dict[str, tuple[str, float, float]] = {}  # by agent: field, time, confidence
        self._woken: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._hints) + len(self._woken)

    def expect(
        self,
        agents: object,
        ticks: float | None = None,
        at: float | None = None,
        confidence: float = 1.0,
        absolute: bool = False,
    ) -> None:
        """As ``Engine.expect``. Raises ``RequestError``, and nothing is kept then."""
        confidence = number("confidence", confidence, 0.0, 1.0)
        if isinstance(agents, Mapping):
            if ticks is not None or at is not None:
                raise RequestError("expect() takes a mapping of distances, or one agent and a time")
            with reading("agents"):
                times = dict(agents)
        elif (ticks is None) == (at is None):
            raise RequestError(f"expect({agents!r:.60}) needs either ticks or at=")
        else:
            times = {agents: ticks if at is None else at}
        field = "at" if absolute or at is not None else "in"
        hints = {
            name_of(agent): (field, number("time", time), confidence)
            for agent, time in times.items()
        }
        with self._lock:
            self._hints.update(hints)
            for name in hints:
                self._woken.pop(name, None)

    def wake(self, agent: object) -> None:
        """As ``Engine.wake``."""
        name = name_of(agent)
        with self._lock:
            self._hints.pop(name, None)
            self._woken[name] = None

    def take(self) -> Ask | None:
        """One request with what waits, or with as much of it as one may have."""
        with self._lock:
            if not self._hints and not self._woken:
                return None
            body: dict[str, Any] = {}
            names = list(self._hints)[:MAX_SENT]
            for name in names:
                field, time, confidence = self._hints.pop(name)
                value = time if confidence == 1.0 else [time, confidence]
                body.setdefault(field, {})[name] = value
            if self._woken:
                body["interrupt"], self._woken = list(self._woken)[: 2 * MAX_SENT], {}
            return Ask("POST", "/v1/agents/hints", body)


def checked_model(model: object) -> str | None:
    """The name of a model, or none."""
    if model is not None and not isinstance(model, str):
        refuse("model", model, "must be the name of a model")
    return model
