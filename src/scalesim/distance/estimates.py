"""What a source of distances is, and what it says. The one interface that users implement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from scalesim.checks import number, text
from scalesim.core import AgentId
from scalesim.errors import ConfigError

Times: TypeAlias = npt.NDArray[np.float64]


class Estimates(NamedTuple):
    """Next uses of ``n`` agents.

    ``at`` is absolute, in ticks of the clock: a time in the past means now, NaN takes back what was
    said, what is infinite or no number is ignored and counted. ``confidence``, one for all or
    ``[n]``, is the probability that the agent's next call comes about then: within a quarter of the
    distance, or one tick. Of an agent that is named twice, the last estimate holds. One that does
    not exist may be spoken of ahead; a hint for who is not there when its time comes is ignored.
    """

    agents: Sequence[AgentId]
    at: Sequence[float] | Times
    confidence: float | Sequence[float] | npt.NDArray[np.float64] = 1.0


NOTHING = Estimates((), ())


class Listener(Protocol):
    """Listens to a source, until it is closed."""

    @property
    def is_closed(self) -> bool: ...

    def has_news(self) -> None:
        """The source was told something: ask it for changes. From any thread."""


class Source(ABC):
    """Says who will call when. ``changes``, ``called`` and ``forget`` run on the engine's thread;
    what a user tells a source comes from any thread and is kept for that one by ``_tell``.

    A source that raises is not asked again; nothing that it says can change a text. ``name`` is
    its own on an engine: scores and errors call it so. Where a source is made with a
    ``confidence``, that is how often its predictions come true. One that ``judges_itself`` is
    silent unless its predictions are worth something: they are scored all the same, and not
    discounted, for what orders agents well need not name the tick in which they call.
    """

    name: str = "source"
    judges_itself: bool = False
    heard_by: Listener | None = None  # set by the engine

    def __init__(self, name: str | None = None) -> None:
        if name is not None:
            self.name = text("name", name, ConfigError, empty=False)
        self._mail: deque[Callable[[float], None]] = deque()

    @abstractmethod
    def changes(self, now: float) -> Estimates:
        """What is new since the last time, at time ``now`` of the clock. Asked at each tick, after
        the first call of an agent in a tick, and when the source was told something."""

    def called(self, agent: AgentId, now: float) -> None:  # noqa: B027 - optional
        """``agent`` called at ``now``; told once a tick, however many calls its burst has."""

    def forget(self, agents: Sequence[AgentId]) -> None:  # noqa: B027 - optional
        """``agents`` are gone: drop what is known of each. Who is made under one of these ids later
        is somebody new."""

    def why_silent(self) -> str:
        """Why it says nothing at present; empty if it does, or does not know. From any thread."""
        return ""

    def _tell(self, note: Callable[[float], None]) -> None:
        """Have ``note(now)`` run before the next ``changes``."""
        self._mail.append(note)
        if self.heard_by is not None:
            self.heard_by.has_news()

    def _read_mail(self, now: float) -> None:
        while self._mail:
            self._mail.popleft()(now)


class DatedSource(Source):
    """A source that knows, of one agent after another, when that agent calls next: ``_changed``
    holds what is new. ``confidence``: how often that comes true."""

    def __init__(self, name: str, confidence: float) -> None:
        super().__init__(name)
        self._confidence = number("confidence", confidence, 0.0, 1.0, ConfigError)
        self._changed: dict[AgentId, float] = {}

    def forget(self, agents: Sequence[AgentId]) -> None:
        for agent in agents:
            self._changed.pop(agent, None)

    def changes(self, now: float) -> Estimates:
        self._read_mail(now)
        changed, self._changed = self._changed, {}
        return Estimates(tuple(changed), tuple(changed.values()), self._confidence)
