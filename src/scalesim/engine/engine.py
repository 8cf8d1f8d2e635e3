"""The engine: many agents' calls on one model and one page pool.

Time, sources and the engine's life are here, calls in ``entrypoints``, agents and hints in
``agent``. Everything reaches the loop through the inbox, in order.
"""

from __future__ import annotations

import asyncio
import os
import warnings
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scalesim.checks import (
    flag,
    function,
    number,
    path_of,
    shown,
)
from scalesim.config import EngineConfig
from scalesim.core import AgentId
from scalesim.distance.clock import MAX_TIME, Clock
from scalesim.distance.combine import Combine, earliest_credible
from scalesim.distance.estimates import Source
from scalesim.distance.scores import Score
from scalesim.engine import forks
from scalesim.engine.agent import Agent, Agents
from scalesim.engine.chats import ChatEntrypoints
from scalesim.engine.inbox import Inbox
from scalesim.engine.loop import EngineLoop
from scalesim.engine.memory_view import MemoryView
from scalesim.engine.parts import EngineParts
from scalesim.engine.sources import EngineListener, checked_voices, unheard
from scalesim.engine.stats import EngineStats
from scalesim.engine.thread import EngineThread
from scalesim.errors import ConfigError, RequestError
from scalesim.interrupts import InterruptsWait
from scalesim.memory.misses import Miss
from scalesim.requests.adapter_registry import AdapterRegistry
from scalesim.requests.agent_registry import AgentRegistry
from scalesim.requests.limiter import RequestLimiter
from scalesim.requests.prepare import Intake
from scalesim.requests.tickets import Desk
from scalesim.trace.recorder import Recorder, check_new


class Engine(ChatEntrypoints):
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
        voices = checked_voices(sources)
        function("combine", combine, "(at, confidence)", ConfigError)
        flag("dummy_weights", dummy_weights, ConfigError)
        trace = None if record is None else path_of("record", record, ConfigError)
        if trace is not None:
            check_new(trace)
        self.parts = parts = _parts_of(model, config, settings, dummy_weights)
        if not isinstance(model, EngineParts):
            # until there is more to close: whatever is wrong from here on, its threads end
            self._finalizer = weakref.finalize(self, parts.link.close)
        self.model, limits = parts.model, parts.limits
        self._inbox, registry = Inbox(), AgentRegistry()
        self.adapters = AdapterRegistry(
            parts.read_adapter, parts.memory, self._inbox.post_if_open, self._inbox.check_process
        )
        self._limiter = RequestLimiter(limits.max_open_requests, refuse=limits.when_full == "error")
        self._loop = EngineLoop(
            parts,
            combine=combine,
            limiter=self._limiter,
            adapters=self.adapters,
            recorder=None if trace is None else Recorder(trace, parts.memory.block_size),
            is_known=registry.__contains__,
        )
        self._thread = EngineThread(self._loop, self._inbox)
        if not isinstance(model, EngineParts):
            self._finalizer.detach()
        self._finalizer = weakref.finalize(self, self._thread.close)  # also at interpreter exit
        self._desk = Desk(self._inbox.post_quietly, self._loop.calls.abandon)
        self._intake = Intake(self.model, parts.memory, registry, self.adapters, self._loop.keys)
        self._agents = Agents(registry, self.adapters, self._loop, self._inbox, self._thread)
        self.memory = MemoryView(parts, registry, self._loop, self._inbox, self._thread)
        self._listener = EngineListener(self._inbox, self._loop.advice.poll)
        self._source_names: set[str] = set()
        for voice in voices:
            self._loop.advice.listen(voice)
            voice.heard_by(self._listener)
        forks.tell(self)

    def after_fork(self) -> None:
        """In the child of a fork (``forks``): the engine is closed there, and touches nothing that
        it shares with its own process."""
        self._inbox.after_fork()
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
        """Counts of calls, tokens, steps, and of what memory did, since the start: as of now."""
        return self._loop.stats.with_memory(self.parts.memory)

    # -- agents and time ----------------------------------------------------------------------

    def agent(self, id: AgentId, *, adapter: str | Path | None = None) -> Agent:
        """The handle of agent ``id``, made on first use.

        ``adapter`` is a name known to ``adapters``, or a folder, which is added under its path;
        it stays the agent's until another is given. Raises ``RequestError`` for an id that is no
        Unicode text of at most 1024 characters and no whole number of at most 256 bits,
        ``AdapterError`` for an adapter that cannot be used.
        """
        return self._agents.handle(self, id, adapter)

    def fork(self, parent: AgentId, child: AgentId) -> Agent:
        """A new agent ``child`` that owns what ``parent`` owns; nothing is copied until one of them
        writes. Raises ``UnknownAgentError`` for the parent, ``RequestError`` for a child that
        exists."""
        return self._agents.fork(self, parent, child)

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
        self._agents.forget(agents, wait)

    def expect(
        self,
        agents: AgentId | Mapping[AgentId, float],
        ticks: float | None = None,
        *,
        at: float | None = None,
        confidence: float | Mapping[AgentId, float] = 1.0,
        absolute: bool = False,
        steps: float | None = None,
    ) -> None:
        """Say who is needed when: ``expect({"ada": 0, "bob": 12})`` in ticks from now,
        ``expect("ada", 3)``, or on the clock: ``expect("ada", at=17.5)``,
        ``expect({"ada": 17.5}, absolute=True)``.

        ``confidence`` is the probability that this is about right, for all or by agent. Advice
        only: a wrong distance costs time and changes no text. Raises ``UnknownAgentError``, and
        ``RequestError`` for a call that gives no time or two. What is no finite time, or no
        confidence, is ignored: counted in ``source_scores()["declared"]``, and told once with a
        ``HintWarning``.
        ``steps`` is the deprecated name of ``ticks``.
        """
        self._agents.expect(
            agents, ticks, at=at, confidence=confidence, absolute=absolute, steps=steps
        )

    def add_source(self, source: Source) -> None:
        """Listen to ``source`` as well, from now on. Raises ``ConfigError`` for what is no source,
        if its name is taken, or if another engine that is open listens to it."""
        with self._agents.registry.lock, InterruptsWait():
            voice, names = unheard(source), self._loop.advice.distances.names
            if voice.name in self._source_names or voice.name in names:
                raise ConfigError(
                    f"a source is named {shown(voice.name)} already; give it another name="
                )
            voice.heard_by(self._listener)
            self._inbox.post(lambda: self._loop.advice.listen(voice))
            self._source_names.add(voice.name)

    def why(self, agent: AgentId) -> Miss | None:
        """The cause of ``agent``'s last miss: print it. With it comes what was said of the agent
        and did not count, or seems meant for it under another name; where nothing was known of the
        call, also which sources are silent, and why. ``None`` if it missed nothing and nothing
        said of it was in vain. Raises ``UnknownAgentError``."""
        agent = self._agents.registry.known(agent).id
        distances = self._loop.advice.distances
        miss, unheard = self.parts.memory.last_miss(agent), distances.unheard(agent)
        if miss is None:
            return Miss.without(unheard, self.clock.now) if unheard else None
        if miss.cause == "no hint":
            unheard += distances.silent()
        return miss._replace(unheard=tuple(unheard))

    def source_scores(self) -> dict[str, Score]:
        """By source, how its predictions came out so far, which hints were ignored and why, and why
        it is silent, if it is; ``declared`` is what ``expect`` said."""
        return self._loop.advice.distances.scores()

    def wake(self, agent: AgentId) -> None:
        """``agent`` is about to call, whatever was said before. Raises ``UnknownAgentError``."""
        agent = self._agents.registry.known(agent).id
        self._inbox.post(lambda: self._loop.advice.wake(agent))

    def tick(self, n: float = 1, *, to: float | None = None) -> None:
        """Move the simulation's clock ``n`` ticks on, or ``to`` a time, at most 2**52. Raises
        ``RequestError`` for a time that is past, or where both are given."""
        wall_s = self.parts.time_s()
        ticks = number("n", n, 0.0, MAX_TIME, above=True)
        if to is not None:
            if n != 1:
                raise RequestError(f"tick({n}, to={to}): give a number of ticks or a time")
            if (to := number("to", to, maximum=MAX_TIME)) < self.clock.now:
                raise RequestError(
                    f"tick(to={to}): the clock is at {self.clock.now}, and goes forward"
                )
        self._inbox.post(lambda: self._loop.tick(wall_s, ticks, to=to))

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
            return self._thread.step()
        finally:
            if self._inbox.is_closed:
                self._finalizer.detach()  # what it died of has the caller's frames, and so us

    def close(self) -> None:
        """End all open calls with ``EngineClosedError``, stop the thread and the link.
        Idempotent."""
        self._thread.close()
        self._finalizer.detach()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, *error: object) -> None:
        """``close`` beside the event loop, whose tasks learn meanwhile that their calls ended."""
        await asyncio.to_thread(self.close)


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
