"""The engine: many agents' calls on one model and one page pool.

Agents, time and hints are here, the calls in ``caller``. Everything reaches the loop through the
driver's inbox, in order.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scalesim import forks
from scalesim.adapters import AdapterRegistry
from scalesim.agent import Agent
from scalesim.caller import Caller
from scalesim.config import EngineConfig
from scalesim.core import AgentId, SamplingParams
from scalesim.distance.clock import Clock
from scalesim.distance.combine import Combine, earliest_credible
from scalesim.distance.estimates import Source
from scalesim.distance.scores import Score
from scalesim.driver import Driver
from scalesim.errors import ConfigError, RequestError
from scalesim.gate import Gate
from scalesim.intake import Intake
from scalesim.loop import EngineStats, Loop, Parts
from scalesim.memory.misses import Miss
from scalesim.recorder import Recorder
from scalesim.tickets import Desk

__all__ = ["Engine", "EngineStats", "Parts"]


class Engine(Caller):
    """Runs requests of any number of agents.

    ``model`` is a Hugging Face folder or hub id, or ready-made ``Parts``. Settings are the fields
    of ``EngineConfig``, given as one (``config``) or by name. ``dummy_weights``: random ones, for
    which the folder's config is enough. ``sources`` say who will call when, beside
    ``expect``; ``combine`` makes one next use of several. ``record``: write a trace of all calls
    and hints to this file. Raises ``ConfigError``, ``UnsupportedModelError`` or ``WeightsError`` at
    once. Close it, or use it as a context manager.
    """

    def __init__(
        self,
        model: str | Path | Parts,
        config: EngineConfig | None = None,
        *,
        dummy_weights: bool = False,
        sources: Iterable[Source] = (),
        combine: Combine = earliest_credible,
        record: str | Path | None = None,
        **settings: Any,
    ) -> None:
        if isinstance(model, Parts):
            self.parts = model
        else:
            from scalesim.assembly import build_parts, with_settings

            self.parts = build_parts(model, with_settings(config, settings), dummy_weights)
            # until there is more to close: whatever is wrong from here on, its threads end
            self._finalizer = weakref.finalize(self, self.parts.link.close)
        self.model, limits = self.parts.model, self.parts.limits
        sources = list(sources)
        self._loop = Loop(self.parts, sources, combine)
        self._driver = Driver(self._loop)
        if not isinstance(model, Parts):
            self._finalizer.detach()
        self._finalizer = weakref.finalize(self, self._driver.close)  # also at interpreter exit
        self.adapters = AdapterRegistry(
            self.parts.read_adapter,
            self.parts.memory,
            self._driver.post_if_open,
            self._driver.check_process,
        )
        self._gate = Gate(limits.max_open_requests, refuse=limits.when_full == "error")
        self._desk = Desk(self._driver.post_quietly, self._loop.abandon)
        self._loop.gate = self._gate
        self._loop.restored = self.adapters.restore
        self._loop.on_ended = self.adapters.let_go
        if record is not None:
            self._loop.recorder = Recorder(Path(record), self.parts.memory.block_size)
        self._intake = Intake(self.model, self.parts.memory, self.adapters)
        for source in sources:
            self._heed(source)
        forks.tell(self)

    def after_fork(self) -> None:
        """In the child of a fork (``forks``): the engine is closed there, and touches nothing that
        it shares with its own process."""
        self._driver.after_fork()
        if self._loop.recorder is not None:
            self._loop.recorder.after_fork()

    @property
    def clock(self) -> Clock:
        """The simulation's clock, to read; ``advance`` moves it."""
        return self._loop.clock

    @property
    def device(self) -> str:
        """Where it computes: ``"cpu"``, or ``"cuda:0"`` and so on."""
        return self.parts.device

    @property
    def stats(self) -> EngineStats:
        """Counts of calls, tokens and steps since the start."""
        return self._loop.stats

    def sampling(self, **params: Any) -> SamplingParams:
        """``SamplingParams`` of these fields; what is not given is as the model's
        ``generation_config.json`` says, where ``EngineConfig.generation_config`` lets it. Agents'
        calls go through this; a ``Request`` of one's own has the parameters that it is given."""
        return SamplingParams(**{**self.model.defaults, **params})

    # -- agents and time ----------------------------------------------------------------------

    def agent(self, id: AgentId, *, adapter: str | Path | None = None) -> Agent:
        """The handle of agent ``id``, made on first use.

        ``adapter`` is a name known to ``adapters``, or a folder, which is added under its path;
        it stays the agent's until another is given. Raises ``RequestError`` for an id of another
        type, ``AdapterError`` for an adapter that cannot be used.
        """
        if isinstance(id, bool) or not isinstance(id, (str, int)):
            raise RequestError(f"agent id {id!r} must be a string or a whole number")
        self._driver.check_open()
        if id not in self._intake.agents:
            self._intake.agents[id] = Agent(self, id)
        agent = self._intake.agents[id]
        if adapter is not None:
            name = str(adapter)
            if name not in self.adapters:
                self.adapters.add(name, adapter)
            self.adapters.bind(id, name)
            agent.adapter = name
        return agent

    def fork(self, parent: AgentId, child: AgentId) -> Agent:
        """A new agent ``child`` that owns what ``parent`` owns; nothing is copied until one of them
        writes. Raises ``UnknownAgentError`` for the parent, ``RequestError`` for a child that
        exists."""
        adapter = self._intake.known(parent).adapter
        if child in self._intake.agents:
            raise RequestError(f"agent {child!r} exists already; fork into a new id")
        agent = self.agent(child)
        agent.adapter = adapter
        self._driver.post(lambda: self.parts.memory.owners.fork(parent, child))
        return agent

    def expect(
        self,
        agents: AgentId | Mapping[AgentId, float],
        steps: float | None = None,
        *,
        at: float | None = None,
        confidence: float = 1.0,
    ) -> None:
        """Say who is needed when: ``expect({"ada": 0, "bob": 12})`` in steps from now,
        ``expect("ada", 3)``, or ``expect("ada", at=17.5)`` on the clock.

        ``confidence`` is the probability that this is about right. Advice only: a wrong distance
        costs time and changes no text. Raises ``UnknownAgentError``, and ``RequestError`` for a
        call that gives no time or two.
        """
        if isinstance(agents, Mapping):
            distances = dict(agents)
            if steps is not None or at is not None:
                raise RequestError("expect() takes a mapping of distances, or one agent and a time")
        elif (steps is None) == (at is None):
            raise RequestError(f"expect({agents!r}) needs either steps or at=")
        else:
            distances = {agents: steps if steps is not None else at}  # type: ignore[dict-item]
        for agent in distances:
            self._intake.known(agent)
        times = {agent: as_time(steps) for agent, steps in distances.items()}
        sure = as_time(confidence)
        self._driver.post(lambda: self._loop.expect(times, sure, absolute=at is not None))

    def add_source(self, source: Source) -> None:
        """Listen to ``source`` as well, from now on. Raises ``ConfigError`` if its name is
        taken."""
        if source.name in self._loop.distances.scores():
            raise ConfigError(f"a source is named {source.name!r} already; give it another name=")
        self._heed(source)
        self._driver.post(lambda: self._loop.listen(source))

    def _heed(self, source: Source) -> None:
        driver, poll = self._driver, self._loop.poll_sources
        source.on_news = lambda: driver.post_if_open(poll)

    def why(self, agent: AgentId) -> Miss | None:
        """The cause of ``agent``'s last miss, ``None`` if it had none: print it. Raises
        ``UnknownAgentError``."""
        self._intake.known(agent)
        return self.parts.memory.misses.last.get(agent)

    def source_scores(self) -> dict[str, Score]:
        """By source, how its predictions came out so far; ``declared`` is what ``expect`` said."""
        return self._loop.distances.scores()

    def wake(self, agent: AgentId) -> None:
        """``agent`` is about to call, whatever was said before. Raises ``UnknownAgentError``."""
        self._intake.known(agent)
        self._driver.post(lambda: self._loop.wake(agent))

    def advance(self, *, to: float | None = None) -> None:
        """Move the simulation's clock one step on, or ``to`` a time. Raises ``RequestError`` for
        one that is past."""
        wall_s = self.parts.time_s()
        if to is not None and not self.clock.now <= to < math.inf:
            raise RequestError(
                f"advance(to={to}): the clock is at {self.clock.now}, and goes forward"
            )
        self._driver.post(lambda: self._loop.advance(wall_s, to))

    # -- its life -----------------------------------------------------------------------------

    def step(self) -> bool:
        """One step of the loop, on the caller's thread; False when there was nothing to do.

        Raises ``EngineModeError`` when the engine's own thread drives.
        """
        try:
            return self._driver.step()
        finally:
            if self._driver.is_closed:
                self._finalizer.detach()  # what it died of has the caller's frames, and so us

    def close(self) -> None:
        """End all open calls with ``EngineClosedError``, stop the thread and the link.
        Idempotent."""
        self._driver.close()
        self._finalizer.detach()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def as_time(value: Any) -> float:
    """A hint as a number; NaN, which is ignored and counted, for what is none."""
    try:
        return float(value)
    except Exception:
        return math.nan
