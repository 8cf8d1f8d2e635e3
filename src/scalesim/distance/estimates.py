"""Sources of predictions: the interface that users implement, and the estimates it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from scalesim.checks import number, text
from scalesim.core import AgentId
from scalesim.distance.state import PlainState
from scalesim.errors import ConfigError

Times: TypeAlias = npt.NDArray[np.float64]


class Estimates(NamedTuple):
    """Predicted next uses of ``n`` agents.

    ``at``, ``[n]``, is absolute, in ticks of the clock: a time in the past means now, NaN takes
    the last estimate back, an infinite value or one that is no number is ignored and counted.
    ``confidence``, one for all or ``[n]``, is the probability that the agent's next call comes at
    about that time: within a quarter of the distance, or one tick. For an agent named twice, the
    last estimate holds. An estimate may name an agent that does not exist yet; it is ignored if
    the agent does not exist by its time.
    """

    agents: Sequence[AgentId]
    at: Sequence[float] | Times
    confidence: float | Sequence[float] | npt.NDArray[np.float64] = 1.0


NOTHING = Estimates((), ())


class Listener(Protocol):
    """The engine as a source sees it: told that the source has news, until the engine is closed."""

    @property
    def is_closed(self) -> bool: ...

    def has_news(self) -> None:
        """Note that a user told the source something, so it is to be asked. From any thread."""


class Source(ABC):
    """A source of predictions of agents' next calls.

    ``changes``, ``called`` and ``forget`` run on the engine's thread. Users call a source's own
    methods from any thread; ``_tell`` keeps what they say for the engine's thread. A source that
    raises is not asked again, and no prediction can change a generated text. ``name`` is unique in
    an engine; scores and errors use it. The ``confidence`` that some sources are made with is the
    share of their predictions that come true.

    A source that ``judges_itself`` is silent unless its predictions are useful. Its predictions
    are scored but not discounted, because an order of agents can be good although the predicted
    ticks are not.
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
        """The estimates that are new since the last time, at time ``now`` of the clock. The engine
        asks at each tick, after an agent's first call in a tick, and after news (``_tell``)."""

    def called(self, agent: AgentId, now: float) -> None:  # noqa: B027 - optional
        """Note that ``agent`` called at ``now``: once per tick, however many calls its burst
        has."""

    def forget(self, agents: Sequence[AgentId]) -> None:  # noqa: B027 - optional
        """Drop all that is known of ``agents``, which no longer exist. An agent that is made later
        under one of these ids is a new one."""

    def state(self) -> PlainState | None:
        """What the source has learned, for a snapshot and for ``restore``: names and plain values,
        see ``distance.state``. ``None``: it learns nothing, or is told all of it anew."""
        return None

    def restore(self, state: PlainState, now: float) -> None:  # noqa: B027 - optional
        """Go on from what ``state`` gave, at time ``now`` of the clock. The source was made with
        the same arguments, and no one has called yet. Called on whatever thread restores."""

    def why_silent(self) -> str:
        """Why the source says nothing at present; empty if it speaks, or does not know why. From
        any thread."""
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
    """A source that keeps new predictions agent by agent, in ``_changed``, until it is asked.

    ``confidence`` is the share of the predictions that come true.
    """

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
