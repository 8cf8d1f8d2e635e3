"""The engine: many agents' calls on one model and one page pool.

Agents, time and hints are here, the calls in ``caller``. Everything reaches the loop through the
driver's inbox, in order.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scalesim.checks import (
    agent_id,
    agent_ids,
    flag,
    function,
    instance,
    number,
    path_of,
    reading,
    refuse,
    shown,
    text,
    unknown_option,
)
from scalesim.config import EngineConfig
from scalesim.core import AgentId
from scalesim.distance.clock import MAX_TIME, Clock
from scalesim.distance.combine import Combine, earliest_credible
from scalesim.distance.estimates import Source
from scalesim.distance.hints import read
from scalesim.distance.scores import Score
from scalesim.distance.voice import voice_of
from scalesim.engine import forks
from scalesim.engine.agent import Agent, renamed_ticks
from scalesim.engine.entrypoints import Entrypoints
from scalesim.engine.interrupts import InterruptsWait
from scalesim.engine.loop import EngineLoop, EngineStats
from scalesim.engine.parts import EngineParts
from scalesim.engine.thread import EngineThread
from scalesim.engine.tickets import Desk
from scalesim.errors import AdapterError, ConfigError, HintWarning, RequestError
from scalesim.memory.misses import Miss
from scalesim.requests.adapter_registry import AdapterRegistry
from scalesim.requests.call import Bell
from scalesim.requests.limiter import RequestLimiter
from scalesim.requests.prepare import Intake
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams
from scalesim.trace.recorder import Recorder, check_new

_PARAMS = frozenset(field.name for field in fields(SamplingParams))
_OPTIONS = frozenset(field.name for field in fields(Request)) - {"prompt", "agent", "params"}


class Engine(Entrypoints):
    """Runs requests of any number of agents.

    ``model`` is a Hugging Face folder or hub id, or ready-made ``EngineParts``. Settings are the
    fields of ``EngineConfig``, given as one (``config``) or by name. ``dummy_weights``: random
    ones, for which the folder's config is enough. ``sources`` say who will call when, beside
    ``expect``; ``combine`` makes one next use of several. ``record``: write a trace of all calls
    and hints to this file, which must not exist yet. Raises ``ConfigError``,
    ``UnsupportedModelError`` or ``WeightsError`` at once. Close it, or use it as a context
    manager.
    """

    def __init__(
        self,
        model: str | Path | EngineParts,
        config: EngineConfig | None = None,
        *,
        dummy_weights: bool = False,
        sources: Iterable[Source] = (),
        combine: Combine = earliest_credible,
        record: str | Path | None = None,
        **settings: Any,
    ) -> None:
        sources = checked_sources(sources)
        function("combine", combine, "(at, confidence)", ConfigError)
        flag("dummy_weights", dummy_weights, ConfigError)
        record = None if record is None else path_of("record", record, ConfigError)
        if record is not None:
            check_new(record)
        self.parts = _parts_of(model, config, settings, dummy_weights)
        if not isinstance(model, EngineParts):
            # until there is more to close: whatever is wrong from here on, its threads end
            self._finalizer = weakref.finalize(self, self.parts.link.close)
        self.model, limits = self.parts.model, self.parts.limits
        self._source_names: set[str] = set()  # of those that were added since
        self._loop = EngineLoop(self.parts, combine=combine)
        self._driver = EngineThread(self._loop)
        if not isinstance(model, EngineParts):
            self._finalizer.detach()
        self._finalizer = weakref.finalize(self, self._driver.close)  # also at interpreter exit
        self.adapters = AdapterRegistry(
            self.parts.read_adapter,
            self.parts.memory,
            self._driver.post_if_open,
            self._driver.check_process,
        )
        self._gate = RequestLimiter(limits.max_open_requests, refuse=limits.when_full == "error")
        self._desk = Desk(self._driver.post_quietly, self._loop.abandon)
        self._loop.gate = self._gate
        self._loop.restored = self.adapters.restore
        self._loop.on_ended = self.adapters.let_go
        if record is not None:
            self._loop.recorder = Recorder(record, self.parts.memory.block_size)
        self._intake = Intake(self.model, self.parts.memory, self.adapters)
        self._loop.distances.is_known = _knows(self._intake)
        for source in sources:
            self._loop.listen(source)
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
        """The simulation's clock, to read; ``tick`` moves it."""
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
        calls go through this; a ``Request`` of one's own has the parameters that it is given.
        Raises ``RequestError`` for a field that there is not."""
        for name in params:
            if name not in _PARAMS:
                raise RequestError(unknown_option(name, _PARAMS | _OPTIONS, "option"))
        return SamplingParams(**{**self.model.defaults, **params})

    # -- agents and time ----------------------------------------------------------------------

    def agent(self, id: AgentId, *, adapter: str | Path | None = None) -> Agent:
        """The handle of agent ``id``, made on first use.

        ``adapter`` is a name known to ``adapters``, or a folder, which is added under its path;
        it stays the agent's until another is given. Raises ``RequestError`` for an id that is no
        Unicode text of at most 1024 characters and no whole number of at most 256 bits,
        ``AdapterError`` for an adapter that cannot be used.
        """
        id = agent_id(id)
        self._driver.check_open()
        agent = self._intake.agents.get(id)
        if agent is None:
            with self._intake.lock:
                agent = self._intake.agents.setdefault(id, Agent(self, id))
            if self._loop.distances.has_sources:  # one of them may have spoken of it already
                self._driver.post_if_open(partial(self._loop.distances.meet, id))
        if adapter is not None:
            name = str(path_of("adapter", adapter, AdapterError))
            if name not in self.adapters:
                self.adapters.add(name, adapter)
            with self._intake.lock:
                self._intake.known(id)  # it may have been forgotten since
                self.adapters.bind(id, name)
                agent.adapter = name
        return agent

    def fork(self, parent: AgentId, child: AgentId) -> Agent:
        """A new agent ``child`` that owns what ``parent`` owns; nothing is copied until one of them
        writes. Raises ``UnknownAgentError`` for the parent, ``RequestError`` for a child that
        exists."""
        child = agent_id(child)
        with self._intake.lock, InterruptsWait():
            origin = self._intake.known(parent)
            if child in self._intake.agents:
                raise RequestError(f"agent {shown(child)} exists already; fork into a new id")
            agent = self.agent(child)
            agent.adapter = origin.adapter
            self.adapters.fork(origin.id, child)
            self._driver.post(lambda: self.parts.memory.fork(origin.id, child))
        return agent

    def forget(self, agents: AgentId | Iterable[AgentId], *, wait: bool = True) -> None:
        """``agents``, one id or many, are gone, with all that is kept for each: its pages on both
        tiers but those that others own as well (a fork, whoever shares its prompt), its adapter
        binding, its hints and what sources learned of it, its count of equal requests. Handles
        raise ``UnknownAgentError`` from now on; ``agent`` makes a new one under the id, who says
        what somebody says who was never seen.

        Open calls go on and give their replies; what they hold goes when they end. What was handed
        in or said before takes place before, what comes later is about somebody else. Returns when
        it is done, between two steps of the engine's thread; with ``wait=False`` at once, for event
        loops. Raises ``UnknownAgentError`` before anybody is forgotten, and ``RequestError`` for
        what are no ids.
        """
        ids = _ids(agents)
        flag("wait", wait)
        self._driver.check_open()
        done = Bell()

        def forget() -> None:
            try:
                self._loop.forget(ids)
            finally:
                done.ring()

        with self._intake.lock, InterruptsWait():  # of what is halfway there is no second try
            for agent in [self._intake.known(id) for id in ids]:
                agent.is_forgotten = True
                del self._intake.agents[agent.id]
            self.adapters.unbind(ids)
            self._loop.keys.forget(ids)
            self._driver.post(forget)
        if wait:
            self._driver.wait_for(done)

    def expect(
        self,
        agents: AgentId | Mapping[AgentId, float],
        ticks: float | None = None,
        *,
        at: float | None = None,
        confidence: float = 1.0,
        steps: float | None = None,
    ) -> None:
        """Say who is needed when: ``expect({"ada": 0, "bob": 12})`` in ticks from now,
        ``expect("ada", 3)``, or ``expect("ada", at=17.5)`` on the clock.

        ``confidence`` is the probability that this is about right. Advice only: a wrong distance
        costs time and changes no text. Raises ``UnknownAgentError``, and ``RequestError`` for a
        call that gives no time or two. What is no finite time, or no confidence, is ignored:
        counted in ``source_scores()["declared"]``, and told once with a ``HintWarning``.
        ``steps`` is the deprecated name of ``ticks``.
        """
        ticks = renamed_ticks(ticks, steps)
        if isinstance(agents, Mapping):
            if ticks is not None or at is not None:
                raise RequestError("expect() takes a mapping of distances, or one agent and a time")
            with reading("agents"):
                distances = dict(agents)
        elif (ticks is None) == (at is None):
            raise RequestError(f"expect({shown(agents)}) needs either ticks or at=")
        else:
            distances = {self._intake.known(agents).id: ticks if ticks is not None else at}  # type: ignore[dict-item]
        ids = [self._intake.known(agent).id for agent in distances]
        hints, ignored = read(ids, list(distances.values()), confidence, of_users=True)
        if hints.agents:
            times = dict(zip(hints.agents, map(float, hints.at), strict=True))
            self._driver.post(
                lambda: self._loop.expect(times, hints.confidence[0], absolute=at is not None)
            )
        if ignored and (told := self._loop.distances.ignore("declared", ignored)):
            warnings.warn(told, HintWarning, stacklevel=2)

    def add_source(self, source: Source) -> None:
        """Listen to ``source`` as well, from now on. Raises ``ConfigError`` for what is no source,
        if its name is taken, or if another engine that is open listens to it."""
        check_source(source)
        voice = voice_of(source)
        name = voice.name
        with self._intake.lock, InterruptsWait():
            if name in self._source_names or name in self._loop.distances.names:
                raise ConfigError(f"a source is named {shown(name)} already; give it another name=")
            check_unheard(source)
            self._heed(source)
            self._driver.post(lambda: self._loop.hear(voice))
            self._source_names.add(name)

    def _heed(self, source: Source) -> None:
        driver, poll = self._driver, self._loop.poll_sources
        source.heard_by = driver
        source.on_news = lambda: driver.post_if_open(poll)

    def why(self, agent: AgentId) -> Miss | None:
        """The cause of ``agent``'s last miss: print it. With it comes what was said of the agent
        and did not count, or seems meant for it under another name; where nothing was known of the
        call, also which sources are silent, and why. ``None`` if it missed nothing and nothing
        said of it was in vain. Raises ``UnknownAgentError``."""
        agent = self._intake.known(agent).id
        distances = self._loop.distances
        miss, unheard = self.parts.memory.last_miss(agent), distances.unheard(agent)
        if miss is None:
            return Miss.without(unheard, self.clock.now) if unheard else None
        if miss.cause == "no hint":
            unheard += distances.silent()
        return miss._replace(unheard=tuple(unheard))

    def source_scores(self) -> dict[str, Score]:
        """By source, how its predictions came out so far, which hints were ignored and why, and why
        it is silent, if it is; ``declared`` is what ``expect`` said."""
        return self._loop.distances.scores()

    def wake(self, agent: AgentId) -> None:
        """``agent`` is about to call, whatever was said before. Raises ``UnknownAgentError``."""
        agent = self._intake.known(agent).id
        self._driver.post(lambda: self._loop.wake(agent))

    def tick(self, n: float = 1, *, to: float | None = None) -> None:
        """Move the simulation's clock ``n`` ticks on, or ``to`` a time, at most 2**52. Raises
        ``RequestError`` for a time that is past, or where both are given."""
        wall_s = self.parts.time_s()
        ticks = number("n", n, 0.0, MAX_TIME, above=True)
        if to is not None:
            if n != 1:
                raise RequestError(f"tick({n}, to={to}): give a number of ticks or a time")
            if (to := number("to", to, most=MAX_TIME)) < self.clock.now:
                raise RequestError(
                    f"tick(to={to}): the clock is at {self.clock.now}, and goes forward"
                )
        self._driver.post(lambda: self._loop.tick(wall_s, ticks, to=to))

    def advance(self, *, to: float | None = None) -> None:
        """The deprecated name of ``tick``."""
        warnings.warn("advance() is named tick() now", DeprecationWarning, stacklevel=2)
        self.tick(to=to)

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


def _parts_of(
    model: str | Path | EngineParts,
    config: EngineConfig | None,
    settings: Mapping[str, Any],
    dummy: bool,
) -> EngineParts:
    if isinstance(model, EngineParts):
        if config is not None or settings or dummy:
            given = next(iter(settings), "config" if config is not None else "dummy_weights")
            raise ConfigError(f"{given} says nothing of Parts, which are made already; leave it")
        return model
    from scalesim.engine.build import build_parts, with_settings

    path_of("model", model, ConfigError)
    # as it was written: "./org/name" is a folder, "org/name" may be a hub's
    return build_parts(os.fspath(model), with_settings(config, settings), dummy)


def checked_sources(sources: object) -> list[Source]:
    """A list of sources that no engine listens to. Raises ``ConfigError``."""
    if isinstance(sources, Source):
        sources = [sources]
    if isinstance(sources, (str, bytes, type, Mapping)) or not isinstance(sources, Iterable):
        refuse("sources", sources, "must be a list of sources: [Learned()]", ConfigError)
    with reading("sources", ConfigError):
        listed = list(sources)
    names = Counter(map(check_source, listed))
    for source in listed:
        check_unheard(source)
    for name, count in names.items():
        if count > 1:
            raise ConfigError(f"{count} sources are named {shown(name)}; give each its own name=")
    return listed


def check_source(source: object) -> str:
    """Its name. Raises ``ConfigError`` for what is no source with one."""
    instance("source", source, Source, "Learned(), or a class of your own", ConfigError)
    assert isinstance(source, Source)
    with reading("a source's name", ConfigError):
        return text("a source's name", source.name, ConfigError, empty=False)


def check_unheard(source: Source) -> None:
    """Raise ``ConfigError`` if an engine that is open listens to ``source``: it would tell its news
    to one of two."""
    if source.heard_by is not None and not source.heard_by.is_closed:
        raise ConfigError(
            f"an engine listens to source {shown(source.name)} already; make one for each engine, "
            "or close that engine first"
        )


def _knows(intake: Intake) -> Callable[[AgentId], bool]:
    """Whether ``intake`` knows an agent. The loop asks, and its thread must not keep the agents'
    handles, and so the engine, from being dropped."""
    held = weakref.ref(intake)

    def knows(agent: AgentId) -> bool:
        there = held()
        return there is not None and agent in there.agents

    return knows


def _ids(agents: AgentId | Iterable[AgentId]) -> list[AgentId]:
    """One id or many, each once. Raises ``RequestError`` for what are none."""
    is_one = isinstance(agents, (str, int, np.integer))
    return list(dict.fromkeys([agent_id(agents)] if is_one else agent_ids("agents", agents)))
