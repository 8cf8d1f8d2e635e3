"""The engine: many agents' calls on one model and one page pool.

One thread runs the loop: the engine's own, started by the first call that waits, or the user's, who
calls ``step()``. Everything else reaches that thread through one
inbox, in order.
"""

from __future__ import annotations

import asyncio
import atexit
import math
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from scalesim.adapters import AdapterRegistry
from scalesim.agent import Agent
from scalesim.calls import Call, Latch, TextObserver
from scalesim.config import EngineConfig
from scalesim.core import AgentId
from scalesim.distance.clock import Clock
from scalesim.distance.combine import Combine, earliest_credible
from scalesim.distance.estimates import Source
from scalesim.distance.scores import Score
from scalesim.errors import (
    ConfigError,
    EngineClosedError,
    EngineModeError,
    PromptTooLongError,
    RequestCancelledError,
    RequestError,
    UnknownAgentError,
)
from scalesim.loop import EngineStats, Loop, Parts
from scalesim.memory.misses import Miss
from scalesim.recorder import Recorder
from scalesim.requests import Reply, Request, check_params

__all__ = ["Engine", "EngineStats", "Parts"]

_POLL_S = 0.005
_MAX_WAIT_S = 60.0


class Engine:
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
        self.model = self.parts.model
        sources = list(sources)
        self._loop = Loop(self.parts, sources, combine)
        self.adapters = AdapterRegistry(
            self.parts.read_adapter, self.parts.memory.adapters, self._post_if_open
        )
        self._loop.adapter_freed = self.adapters.close
        if record is not None:
            self._loop.recorder = Recorder(Path(record), self.parts.memory.block_size)
        self._agents: dict[AgentId, Agent] = {}
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._mode_lock = threading.Lock()
        self._driver: Literal["none", "thread", "user"] = "none"
        self._thread: threading.Thread | None = None
        self._closed = False
        self._is_shut = False
        self._death: BaseException | None = None
        for source in sources:
            self._heed(source)
        reference = weakref.ref(self)
        atexit.register(lambda: _close_if_alive(reference))

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

    # -- agents and time ----------------------------------------------------------------------

    def agent(self, id: AgentId, *, adapter: str | Path | None = None) -> Agent:
        """The handle of agent ``id``, made on first use.

        ``adapter`` is a name known to ``adapters``, or a folder, which is added under its path;
        it stays the agent's until another is given. Raises ``RequestError`` for an id of another
        type, ``AdapterError`` for an adapter that cannot be used.
        """
        if isinstance(id, bool) or not isinstance(id, (str, int)):
            raise RequestError(f"agent id {id!r} must be a string or a whole number")
        self._check_open()
        if id not in self._agents:
            self._agents[id] = Agent(self, id)
        agent = self._agents[id]
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
        self._known(parent)
        if child in self._agents:
            raise RequestError(f"agent {child!r} exists already; fork into a new id")
        agent = self.agent(child)
        agent.adapter = self._agents[parent].adapter
        self._post(lambda: self.parts.memory.owners.fork(parent, child))
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
            self._known(agent)
        times = {agent: as_time(steps) for agent, steps in distances.items()}
        sure = as_time(confidence)
        self._post(lambda: self._loop.expect(times, sure, absolute=at is not None))

    def add_source(self, source: Source) -> None:
        """Listen to ``source`` as well, from now on. Raises ``ConfigError`` if its name is
        taken."""
        if source.name in self._loop.distances.scores():
            raise ConfigError(f"a source is named {source.name!r} already; give it another name=")
        self._heed(source)
        self._post(lambda: self._loop.listen(source))

    def _heed(self, source: Source) -> None:
        def on_news() -> None:
            with suppress(EngineClosedError):
                self._post(self._loop.poll_sources)

        source.on_news = on_news

    def why(self, agent: AgentId) -> Miss | None:
        """The cause of ``agent``'s last miss, ``None`` if it had none: print it. Raises
        ``UnknownAgentError``."""
        self._known(agent)
        return self.parts.memory.misses.last.get(agent)

    def source_scores(self) -> dict[str, Score]:
        """By source, how its predictions came out so far; ``declared`` is what ``expect`` said."""
        return self._loop.distances.scores()

    def wake(self, agent: AgentId) -> None:
        """``agent`` is about to call, whatever was said before. Raises ``UnknownAgentError``."""
        self._known(agent)
        self._post(lambda: self._loop.wake(agent))

    def advance(self, *, to: float | None = None) -> None:
        """Move the simulation's clock one step on, or ``to`` a time. Raises ``RequestError`` for
        one that is past."""
        wall_s = self.parts.time_s()
        if to is not None and not self.clock.now <= to < math.inf:
            raise RequestError(
                f"advance(to={to}): the clock is at {self.clock.now}, and goes forward"
            )
        self._post(lambda: self._loop.advance(wall_s, to))

    # -- calls --------------------------------------------------------------------------------

    def run(
        self, requests: Iterable[Request], *, return_exceptions: bool = False
    ) -> list[Reply | Exception]:
        """Run ``requests`` as one batch and wait; replies in order.

        One request's failure ends no other. Afterwards the first error is raised, or stands in its
        place with ``return_exceptions``.
        """
        calls: list[Call | Exception] = []
        for request in requests:
            try:
                calls.append(self._prepare(request))
            except Exception as error:
                if not return_exceptions:
                    raise
                calls.append(error)
        opened = [call for call in calls if isinstance(call, Call)]
        latch = Latch(len(opened))
        self._start_thread()
        for call in opened:
            call.latch = latch
        self._submit(opened)
        self._await(latch, opened)
        return [self._outcome(call, return_exceptions) for call in calls]

    def generate(self, request: Request) -> Reply:
        """Run one request and wait."""
        call = self._prepare(request)
        call.latch = Latch(1)
        self._start_thread()
        self._submit([call])
        self._await(call.latch, [call])
        return call.result()

    async def generate_async(self, request: Request) -> Reply:
        """Run one request from any event loop. Cancelling the task cancels the request."""
        call = self._prepare(request)
        call.loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = call.loop.create_future()
        call.future = future
        self._start_thread()
        self._submit([call])
        try:
            return await future
        except asyncio.CancelledError:
            with suppress(EngineClosedError):
                self.cancel(call)
            raise

    def submit(self, request: Request) -> Call:
        """Hand in a request without waiting, for those who drive ``step()``: poll ``call.done``."""
        call = self._prepare(request)
        self._submit([call])
        return call

    def cancel(self, call: Call) -> None:
        """End a call; its pages are free within two steps. No effect on one that has ended."""
        error = RequestCancelledError("the request was cancelled")
        self._post(lambda: self._loop.end_call(call, "cancelled", error))

    # -- the loop -----------------------------------------------------------------------------

    def step(self) -> bool:
        """One step of the loop, on the caller's thread; False when there was nothing to do.

        Raises ``EngineModeError`` when the engine's own thread drives.
        """
        self._drive("user")
        return self._step()

    def _step(self) -> bool:
        while self._inbox:
            self._inbox.popleft()()
        return self._loop.step()

    def _run_thread(self) -> None:
        try:
            while not self._closed:
                if not self._step() and not self._inbox:
                    self._idle()
        except BaseException as error:
            self._death = error
            self._closed = True
        self._shut()

    def _idle(self) -> None:
        """Wait for the inbox, for a copy that is under way, or for the next start window."""
        look_ahead = self.parts.memory.look_ahead
        self._wake.clear()
        if self._inbox or self._closed:
            return
        if self.parts.memory.residency.transfers:
            self.parts.link.wait(_POLL_S)
        elif look_ahead.opens_in_s is None:
            self._wake.wait()
        else:
            self._wake.wait(min(max(look_ahead.opens_in_s, 1e-3), _MAX_WAIT_S))

    def close(self) -> None:
        """End all open calls with ``EngineClosedError``, stop the thread and the link.
        Idempotent."""
        if self._closed and self._thread is None:
            return
        self._closed = True
        self._wake.set()
        thread, self._thread = self._thread, None
        if thread is None:
            self._shut()
        elif thread is not threading.current_thread():
            thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _shut(self) -> None:
        """Nothing runs any more: end what is open, and the copies."""
        with self._mode_lock:
            self._is_shut = True
            self._end_all()
        if self._loop.recorder is not None:
            self._loop.recorder.close()
        if self._death is None:
            self._loop.drain()
        self.parts.link.close()

    def _end_all(self) -> None:
        while self._inbox:
            self._inbox.popleft()()
        self._loop.end_all(self._death)

    # -- on the callers' threads --------------------------------------------------------------

    def _prepare(self, request: Request) -> Call:
        self._check_open()
        check_params(request.params, self.model.vocab_size)
        if request.agent is not None:
            self._known(request.agent)
        if request.timeout is not None and not request.timeout > 0:
            raise RequestError(f"timeout={request.timeout!r} must be above 0 seconds")
        tokens = self.model.token_ids(request.prompt)
        self.model.check_length(len(tokens), request.params.max_tokens)
        observer = None
        if request.params.stop:
            observer = self._observer(request)
        call = Call(request, self.model, tokens, observer)
        name = None if request.agent is None else self._agents[request.agent].adapter
        if name is not None:
            self._check_room(name, len(tokens) + request.params.max_tokens)
            call.adapter = self.adapters.use(name, tokens)
        return call

    def _check_room(self, adapter: str, num_tokens: int) -> None:
        """The device pool must hold a request and its adapter."""
        memory, num_pages = self.parts.memory, self.adapters.num_pages(adapter)
        needed = -(-num_tokens // memory.block_size) + num_pages
        if needed > memory.device.num_usable:
            raise PromptTooLongError(
                f"{num_tokens} tokens and adapter {adapter!r} of {num_pages} pages need {needed} "
                f"pages; the device pool has {memory.device.num_usable}; raise device_memory"
            )

    def _observer(self, request: Request) -> TextObserver:
        if self.model.tokenizer is None:
            raise RequestError("stop strings need a tokenizer and this model has none; stop on ids")
        from scalesim.model.token_stream import TokenStream

        return TextObserver(TokenStream(self.model.tokenizer, request.params.stop))

    def _submit(self, calls: list[Call]) -> None:
        now_s = self.parts.time_s()
        for call in calls:
            call.submitted_s = now_s
            if call.adapter is not None:
                self.adapters.hold(call.adapter)
        self._post(lambda: self._loop.accept(calls))

    def _post_if_open(self, command: Callable[[], None]) -> None:
        with suppress(EngineClosedError):
            self._post(command)

    def _post(self, command: Callable[[], None]) -> None:
        self._check_open()
        self._inbox.append(command)
        if not self._wake.is_set():
            self._wake.set()
        if self._is_shut:  # it closed since the check above
            with self._mode_lock:
                self._end_all()

    def _await(self, latch: Latch, calls: list[Call]) -> None:
        """Wait, so that Ctrl-C gets through; it cancels what was waited for."""
        try:
            while not latch.wait(1.0):
                pass
        except BaseException:
            with suppress(EngineClosedError):
                for call in calls:
                    self.cancel(call)
            raise

    def _outcome(self, call: Call | Exception, keep: bool) -> Reply | Exception:
        if isinstance(call, Exception):
            return call
        try:
            return call.result()
        except Exception as error:
            if not keep:
                raise
            return error

    def _known(self, agent: AgentId) -> None:
        if agent not in self._agents:
            raise UnknownAgentError(
                f"agent {agent!r} is unknown to this engine; make it with engine.agent({agent!r})"
            )

    def _check_open(self) -> None:
        if self._closed:
            error = EngineClosedError("the engine is closed; make a new one")
            error.__cause__ = self._death
            raise error

    def _start_thread(self) -> None:
        self.parts.before_wait()
        if self._thread is None:
            self._drive("thread")

    def _drive(self, driver: Literal["thread", "user"]) -> None:
        self._check_open()
        if self._driver == driver and driver == "user":
            return
        with self._mode_lock:
            if self._driver not in ("none", driver):
                raise EngineModeError(
                    "step() drives this engine: submit() and poll, or use another engine for calls "
                    "that wait"
                    if self._driver == "user"
                    else "the engine's own thread drives it; step() is for engines without calls "
                    "that wait"
                )
            self._driver = driver
            if driver == "thread" and self._thread is None:
                self._thread = threading.Thread(
                    target=self._run_thread, name="scalesim-engine", daemon=True
                )
                self._thread.start()


def as_time(value: Any) -> float:
    """A hint as a number; NaN, which is ignored and counted, for what is none."""
    try:
        return float(value)
    except Exception:
        return math.nan


def _close_if_alive(reference: weakref.ref[Engine]) -> None:
    engine = reference()
    if engine is not None:
        engine.close()
