"""A world: agents, what is said of them, and a clock of their own. An engine is one, and so is each
forked world (``worlds``)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from scalesim.checks import function, number, shown
from scalesim.core import AgentId
from scalesim.distance.clock import MAX_TIME, Clock
from scalesim.distance.combine import Combine, earliest_credible
from scalesim.distance.distances import Change
from scalesim.distance.estimates import Source
from scalesim.distance.scores import Score
from scalesim.distance.state import PlainState
from scalesim.distance.voice import Voice
from scalesim.engine.advice import Advice
from scalesim.engine.agent import Agent, Agents
from scalesim.engine.ask import ask
from scalesim.engine.chats import ChatEntrypoints
from scalesim.engine.inbox import Inbox
from scalesim.engine.sources import EngineListener, checked_voices, unheard
from scalesim.engine.worlds import ForkedMemory
from scalesim.errors import ConfigError, EngineClosedError, RequestError
from scalesim.interrupts import InterruptsWait
from scalesim.memory.misses import Miss
from scalesim.requests.adapter import Adapter
from scalesim.requests.agent_registry import AgentEntry, AgentRegistry
from scalesim.requests.model_registry import ModelRegistry
from scalesim.requests.prepare import Intake
from scalesim.requests.prompt import TextModel
from scalesim.sampling.keys import RequestCounts, SamplingKeys


class WorldState(NamedTuple):
    """What a world has beside pages: its clock, all that was said and learned of its agents, and
    the counts of equal requests."""

    advice: PlainState
    counts: RequestCounts


class AgentWorld(ChatEntrypoints):
    """Agents by name, their calls, hints, sources and clock. Worlds of one engine share its model,
    its pages and its adapters, and nothing else."""

    model: TextModel
    models: ModelRegistry
    _advice: Advice
    _keys: SamplingKeys
    _agents: Agents
    _listener: EngineListener
    _source_names: set[str]

    @property
    def clock(self) -> Clock:
        """The simulation's clock, to read; ``tick`` moves it."""
        return self._advice.clock

    def fork_world(
        self, *, sources: Iterable[Source] = (), combine: Combine = earliest_credible
    ) -> ForkedWorld:
        """A fork of this world, from this moment on: the same agents, hints, clock and counts of
        equal requests, which from now on go their own way. No page is copied: both worlds own what
        there is, until one writes. What the fork is asked, it answers as this world would.

        Sources belong to one world: those given as ``sources`` go on, under equal names, from what
        this world's have learned; ``combine`` is as in ``Engine``. Open calls stay this world's;
        where there are some, the fork counts the requests of the open tick as not yet made. Close
        the fork, or use it as a context manager. Raises ``ConfigError`` for what are no sources.
        """
        function("combine", combine, "(at, confidence)", ConfigError)
        voices = checked_voices(sources)
        self._inbox.check_open()
        return ForkedWorld(self, voices, combine)

    def _now(self) -> WorldState:
        """The state of this world at this moment, without memory's. On the engine's thread, between
        two steps."""
        number = self._agents.registry.world
        is_open = any(
            call.sequence is None or call.sequence.finish_reason is None
            for call in self._limiter.calls()
            if call.owner is None or call.owner.world == number
        )
        counts = self._keys.counts(before_tick=is_open)
        return WorldState(self._advice.state(self.parts.time_s()), counts)

    def _go_on(self, state: WorldState, voices: Iterable[Voice]) -> tuple[list[Change], list[str]]:
        """Go on from ``state``, and listen to ``voices``; nobody has called or been heard yet.
        Returns the next uses that memory is to be told, and the names of the sources whose
        knowledge is lost. Where ``_now`` may run."""
        self._keys.restore(state.counts)
        return self._advice.restore(state.advice, self.parts.time_s(), voices)

    # -- agents and time ----------------------------------------------------------------------

    def agent(
        self,
        id: AgentId,
        *,
        adapter: str | Path | Adapter | None = None,
        model: str | None = None,
    ) -> Agent:
        """The handle of agent ``id``, made on first use.

        ``adapter`` is a name known to ``adapters``, a folder, which is added under its path, or
        what ``adapters.add`` returned; it stays the agent's until ``agent.adapter`` is set.
        ``model`` is a name that ``add_model`` was given; it stays until ``agent.model`` is set.
        Raises ``RequestError`` for an id that is no Unicode text of at most 1024 characters and no
        whole number of at most 256 bits, ``AdapterError`` for an adapter that cannot be used,
        ``ModelError`` for a model that is unknown.
        """
        return self._agents.handle(self, id, adapter, model)

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
        """Say when ``agents`` are needed: ``expect({"ada": 0, "bob": 12})`` in ticks from now,
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
            voice, names = unheard(source), self._advice.distances.names
            if voice.name in self._source_names or voice.name in names:
                raise ConfigError(
                    f"a source is named {shown(voice.name)} already; give it another name="
                )
            voice.heard_by(self._listener)
            self._inbox.post(lambda: self._advice.listen(voice))
            self._source_names.add(voice.name)

    def why(self, agent: AgentId) -> Miss | None:
        """The cause of ``agent``'s last miss: print it. With it comes what was said of the agent
        and did not count, or seems meant for it under another name; where nothing was known of the
        call, also which sources are silent, and why. ``None`` if it missed nothing and nothing
        said of it was in vain. Raises ``UnknownAgentError``."""
        entry, distances = self._agents.registry.known(agent), self._advice.distances
        miss, unheard = self.parts.memory.last_miss(entry.key), distances.unheard(entry.id)
        if miss is None:
            return Miss.without(unheard, self.clock.now) if unheard else None
        if miss.cause == "no hint":
            unheard += distances.silent()
        return miss._replace(unheard=tuple(unheard))

    def source_scores(self) -> dict[str, Score]:
        """By source, how its predictions came out so far, which hints were ignored and why, and why
        it is silent, if it is; ``declared`` is what ``expect`` said."""
        return self._advice.distances.scores()

    def wake(self, agent: AgentId) -> None:
        """``agent`` is about to call, whatever was said before. Raises ``UnknownAgentError``."""
        self._inbox.check_open()
        agent = self._agents.registry.known(agent).id
        self._inbox.post(lambda: self._advice.wake(agent))

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
        self._inbox.check_open()
        self._keys.tick()
        self._inbox.post(lambda: self._advice.tick(wall_s, ticks, to=to))

    def advance(self, *, to: float | None = None) -> None:
        """The deprecated name of ``tick``."""
        warnings.warn("advance() is named tick() now", DeprecationWarning, stacklevel=2)
        self.tick(to=to)


class ForkedWorld(AgentWorld):
    """A fork of a world: what ``fork_world`` returns. ``close`` ends its open calls and gives its
    pages back."""

    def __init__(self, parent: AgentWorld, voices: Sequence[Voice], combine: Combine) -> None:
        self.parts, self.model, self.adapters = parent.parts, parent.model, parent.adapters
        self._loop, self._thread, self._inbox = parent._loop, parent._thread, parent._inbox
        self._limiter, self._desk = parent._limiter, parent._desk
        number = self._loop.worlds.next_number()
        registry = AgentRegistry(number)
        memory = ForkedMemory(self.parts.memory, number)
        self._advice = Advice(memory, combine, registry.__contains__, None)
        self._keys = SamplingKeys(self.parts.seed)
        self.models = parent.models
        self._intake = Intake(self.models, registry, self.adapters, self._keys)
        self._listener = EngineListener(self._inbox, self._advice.poll)
        self._source_names: set[str] = set()
        self._agents = self._agents_at(self._inbox, registry)
        for voice in voices:
            voice.heard_by(self._listener)
        with parent._agents.registry.lock:
            origins = parent._agents.registry.entries()
            pairs = [(origin, registry.add(origin.id)) for origin in origins]
            for origin, entry in pairs:
                entry.adapter, entry.model = origin.adapter, origin.model
                self.adapters.fork(origin.key, entry.key)
                self.models.fork(origin.key, entry.key)
        try:
            ask(self._thread, self._inbox, lambda: self._fork_off(parent, voices, pairs))
        except BaseException:
            self.close()
            raise

    def _fork_off(
        self,
        parent: AgentWorld,
        voices: Iterable[Voice],
        pairs: Iterable[tuple[AgentEntry, AgentEntry]],
    ) -> None:
        """On the engine's thread: go on from ``parent``'s state, and own what its agents own."""
        changes, _ = self._go_on(parent._now(), voices)
        self._loop.worlds.add(self.number, self._advice)
        for origin, entry in pairs:
            if not origin.is_forgotten:
                self.parts.memory.fork(origin.key, entry.key)
        self._advice.tell(changes)

    @property
    def number(self) -> int:
        """The number of the forked world, which no other world of the engine has."""
        return self._agents.registry.world

    def close(self) -> None:
        """End its open calls with ``RequestCancelledError``, forget its agents, and with them all
        pages that no other world owns; its sources may be given to others. Handles and ``why``
        raise ``UnknownAgentError`` from now on, everything else that asks for more than what was
        ``EngineClosedError``. Idempotent; no effect after the engine was closed."""
        inbox, registry = self._inbox, self._agents.registry
        self._inbox = self._listener.inbox = _Closed()
        if inbox.is_closed or isinstance(inbox, _Closed):
            return
        with suppress(EngineClosedError):
            inbox.post(self._end_calls)
            self._agents.forget(list(registry), wait=True)
            inbox.post(lambda: self._loop.worlds.remove(self.number))
        self._agents = self._agents_at(self._inbox, registry)

    def _end_calls(self) -> None:
        calls = self._limiter.calls()
        own = [call for call in calls if call.owner and call.owner.world == self.number]
        self._loop.calls.abandon(own)

    def _agents_at(self, inbox: Inbox, registry: AgentRegistry) -> Agents:
        return Agents(
            registry, self.adapters, self.models, self._advice, self._keys, self._loop, inbox,
            self._thread,
        )  # fmt: skip

    def __enter__(self) -> ForkedWorld:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Closed(Inbox):
    """The inbox of a forked world that is closed: it takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = self.is_shut = True

    def check_open(self) -> None:
        raise EngineClosedError("this forked world is closed; fork_world() makes another")
