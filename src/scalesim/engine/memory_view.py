"""The memory of an engine, for its users: who is where, and what a user may ask of memory beside
hints. Of agents, those of the engine's own world are shown.

Questions are answered on the engine's thread, between two steps, so that an answer is of one
moment. They start that thread, as every call that waits does.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

import numpy as np

from scalesim.checks import agent_ids, number, reading, text
from scalesim.core import AgentId
from scalesim.engine.ask import ask
from scalesim.engine.inbox import Inbox
from scalesim.engine.loop import EngineLoop
from scalesim.engine.parts import EngineParts
from scalesim.engine.thread import EngineThread
from scalesim.foreign import Foreign
from scalesim.memory.owners import AgentPages
from scalesim.memory.tiers import TierUse
from scalesim.requests.agent_registry import AgentRegistry, ForkedId, listed_ids
from scalesim.requests.request import Request

MAX_PIN_S = 3600.0
"""A pin that nobody ends is over after an hour at the latest."""
T = TypeVar("T")


class AgentView(NamedTuple):
    """An agent's state: ``pages`` says where it lies, ``open_calls`` how many of its calls are
    running or waiting, ``pinned_s`` how long it is still pinned (0: it is not)."""

    id: AgentId
    pages: AgentPages
    open_calls: int
    pinned_s: float


class Census(NamedTuple):
    """All agents at one moment: ``tick`` of the simulation's clock, what requests there are, and
    for how many seconds the engine was looked at."""

    tick: float
    agents: list[AgentView]
    running: int
    waiting: int
    took_s: float


class MemoryView:
    """``Engine.memory``."""

    def __init__(
        self,
        parts: EngineParts,
        registry: AgentRegistry,
        loop: EngineLoop,
        inbox: Inbox,
        thread: EngineThread,
    ) -> None:
        self._parts, self._registry = parts, registry
        self._loop, self._inbox, self._thread = loop, inbox, thread

    # -- now, from any thread -----------------------------------------------------------------

    @property
    def tiers(self) -> dict[str, TierUse]:
        """How full the device pool and the host pool are, by name."""
        return {tier.name: tier for tier in self._parts.memory.tier_use}

    @property
    def page_bytes(self) -> int:
        """Bytes of a page."""
        return self._parts.memory.page_bytes

    @property
    def queued_bytes(self) -> dict[str, int]:
        """Bytes that wait for the link: ``"in"`` to the device, ``"out"`` to the host."""
        link = self._parts.link
        return {"in": link.queued_bytes("in"), "out": link.queued_bytes("out")}

    def unknown(self, agents: Iterable[AgentId]) -> list[AgentId]:
        """Those of ``agents`` that the engine does not know: ``Engine.agent`` makes them."""
        return [agent for agent in agent_ids("agents", agents) if agent not in self._registry]

    # -- questions ----------------------------------------------------------------------------

    def view(self, agent: AgentId) -> AgentView:
        """Where the state of ``agent`` lies, and whether it calls; waits for the engine's thread.
        Raises ``UnknownAgentError``."""
        id = self._registry.known(agent).id
        return self._ask(lambda: self._view(id))

    async def view_async(self, agent: AgentId) -> AgentView:
        """``view`` of ``agent`` from any event loop."""
        id = self._registry.known(agent).id
        return await self._ask_async(lambda: self._view(id))

    def census(self) -> Census:
        """``view`` of every agent that called or was spoken of, in no order; waits. Costs the
        engine some microseconds an agent."""
        return self._ask(self._census)

    async def census_async(self) -> Census:
        """``census`` from any event loop."""
        return await self._ask_async(self._census)

    async def agents_under_async(
        self, tokens: Sequence[int], *, cache_salt: str | None = None
    ) -> list[AgentId]:
        """The agents whose state begins with ``tokens``, computed with ``cache_salt``, as far as
        that is held in whole blocks: none, where not even the first block is."""
        with reading("tokens"):
            raw = np.asarray(tokens, np.int32).tobytes()
        salted = None if cache_salt is None else text("cache_salt", cache_salt)
        salt = Request("", cache_salt=salted).salt
        found = await self._ask_async(lambda: self._parts.memory.agents_under(raw, salt))
        return [agent for agent in found if not isinstance(agent, ForkedId)]

    async def clock_async(self) -> float:
        """The simulation's clock, once all that was said before has been heard."""
        return await self._ask_async(lambda: self._loop.clock.now)

    # -- requests -----------------------------------------------------------------------------

    def pin(self, agents: AgentId | Iterable[AgentId], seconds: float) -> None:
        """The state of ``agents`` counts as needed now for ``seconds``, at most ``MAX_PIN_S``: it
        is loaded, and leaves after all other state.

        A pin holds no page. A request that finds no other page gets a pinned one, so nothing hangs
        however much is pinned. Raises ``UnknownAgentError``, and ``RequestError`` for a time that
        is none.
        """
        ids = self._known(agents)
        seconds = number("seconds", seconds, 0.0, MAX_PIN_S, above=True)
        until_s = self._parts.time_s() + seconds
        self._inbox.post(lambda: self._loop.advice.pin(ids, until_s))

    def release(self, agents: AgentId | Iterable[AgentId]) -> None:
        """``agents`` are pinned no more, nor demoted. Raises ``UnknownAgentError``."""
        ids = self._known(agents)
        self._inbox.post(lambda: self._loop.advice.let_go(ids))

    def demote(self, agents: AgentId | Iterable[AgentId]) -> None:
        """The state of ``agents`` leaves the device before all other, until they call or are spoken
        of again. No prediction: nothing is scored by it. Raises ``UnknownAgentError``."""
        ids = self._known(agents)
        self._inbox.post(lambda: self._loop.advice.put_off(ids))

    def _known(self, agents: AgentId | Iterable[AgentId]) -> list[AgentId]:
        return self._registry.all_known(listed_ids(agents))

    # -- on the engine's thread ---------------------------------------------------------------

    def _view(self, id: AgentId) -> AgentView:
        calls = sum(sequence.agent == id for sequence in self._loop.calls.sequences)
        return AgentView(id, self._parts.memory.pages_of(id), calls, self._pinned_s(id))

    def _census(self) -> Census:
        begin_s = time.perf_counter()
        calls = Counter(sequence.agent for sequence in self._loop.calls.sequences)
        scheduler = self._parts.scheduler
        agents = [
            AgentView(id, pages, calls[id], self._pinned_s(id))
            for id, pages in self._parts.memory.census()
            if not isinstance(id, ForkedId)
        ]
        took_s = time.perf_counter() - begin_s
        return Census(
            self._loop.clock.now, agents, scheduler.num_running, scheduler.num_waiting, took_s
        )

    def _pinned_s(self, id: AgentId) -> float:
        until_s = self._loop.advice.pinned_until_s(id)
        return 0.0 if until_s is None else max(0.0, until_s - self._parts.time_s())

    # -- there and back -----------------------------------------------------------------------

    def _ask(self, question: Callable[[], T]) -> T:
        """The answer to ``question`` from the engine's thread."""
        return ask(self._thread, self._inbox, question)

    async def _ask_async(self, question: Callable[[], T]) -> T:
        """``_ask`` without holding up the event loop."""
        loop = asyncio.get_running_loop()
        told: asyncio.Future[T] = loop.create_future()

        def tell(answers: list[T], error: Exception | None) -> None:
            if told.done():  # nobody waits any more
                return
            if error is not None:
                told.set_exception(error)
            else:
                told.set_result(answers[0])

        def answer() -> None:
            answers: list[T] = []
            with Foreign() as raised:
                answers.append(question())
            with suppress(RuntimeError):  # the event loop was closed meanwhile
                loop.call_soon_threadsafe(tell, answers, raised.exception)

        self._thread.start_thread()
        self._inbox.post(answer)
        return await told
