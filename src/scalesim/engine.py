"""The engine: many agents' calls on one model and one page pool.

``step`` is plan, move, run, commit. One thread runs it: the engine's own, started by the first call
that waits, or the user's, who calls ``step()``. Everything else reaches that thread through one
inbox, in order.
"""

from __future__ import annotations

import asyncio
import atexit
import heapq
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from scalesim.agent import Agent
from scalesim.calls import Call, Latch, TextObserver, deliver
from scalesim.config import EngineConfig
from scalesim.core import AgentId, Runner, Step
from scalesim.distance.clock import Clock
from scalesim.distance.distances import Change, Distances
from scalesim.errors import (
    EngineClosedError,
    EngineModeError,
    RequestCancelledError,
    RequestError,
    RequestTimeoutError,
    UnknownAgentError,
)
from scalesim.memory.links import Link
from scalesim.memory.look_ahead import Pace
from scalesim.memory.manager import MemoryManager
from scalesim.requests import Reply, Request, TextModel, check_params
from scalesim.sampling_keys import SamplingKeys
from scalesim.scheduler.scheduler import Scheduler
from scalesim.scheduler.sequence import Sequence

_IDLE_WAIT_S = 0.05
_MAX_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What an engine is made of. ``assembly.build_parts`` makes them for a model folder; a test or
    a simulation passes others. ``time_s`` is monotonic seconds. ``before_wait`` runs on a
    caller's thread when it leaves the computing to the engine's."""

    runner: Runner
    memory: MemoryManager
    scheduler: Scheduler
    link: Link
    model: TextModel
    seed: int = 0
    time_s: Callable[[], float] = time.monotonic
    before_wait: Callable[[], None] = lambda: None


@dataclass(slots=True)
class EngineStats:
    """Counts since the start. ``steps`` are the engine's; ``compute_s`` is the runner's time."""

    steps: int = 0
    turns: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    compute_s: float = 0.0


class Engine:
    """Runs requests of any number of agents.

    ``model`` is a Hugging Face folder or hub id, or ready-made ``Parts``. Settings are the fields
    of ``EngineConfig``, given as one or by name. Raises ``ConfigError``, ``UnsupportedModelError``
    or ``WeightsError`` at once. Close it, or use it as a context manager.
    """

    def __init__(
        self,
        model: str | Path | Parts,
        config: EngineConfig | None = None,
        *,
        dummy_weights: bool = False,
        **settings: Any,
    ) -> None:
        if isinstance(model, Parts):
            self.parts = model
        else:
            from scalesim.assembly import build_parts, with_settings

            self.parts = build_parts(model, with_settings(config, settings), dummy_weights)
        self.model = self.parts.model
        self.clock = Clock()
        self.distances = Distances(self.clock)
        self.stats = EngineStats()
        self._memory, self._scheduler = self.parts.memory, self.parts.scheduler
        self._scheduler.before_release = self._ends
        self._keys = SamplingKeys(self.parts.seed)
        self._flights: deque[Step] = deque()
        self._open: dict[int, Call] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._ids = itertools.count(1)
        self._agents: dict[AgentId, Agent] = {}
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._mode_lock = threading.Lock()
        self._driver: Literal["none", "thread", "user"] = "none"
        self._thread: threading.Thread | None = None
        self._closed = False
        self._is_shut = False
        self._death: BaseException | None = None
        reference = weakref.ref(self)
        atexit.register(lambda: _close_if_alive(reference))

    # -- agents and time ----------------------------------------------------------------------

    def agent(self, id: AgentId) -> Agent:
        """The handle of agent ``id``, made on first use. Raises ``RequestError`` for another
        type."""
        if isinstance(id, bool) or not isinstance(id, (str, int)):
            raise RequestError(f"agent id {id!r} must be a string or a whole number")
        self._check_open()
        if id not in self._agents:
            self._agents[id] = Agent(self, id)
        return self._agents[id]

    def fork(self, parent: AgentId, child: AgentId) -> Agent:
        """A new agent that owns what ``parent`` owns; nothing is copied until one of them
        writes."""
        self._known(parent)
        if child in self._agents:
            raise RequestError(f"agent {child!r} exists already; fork into a new id")
        agent = self.agent(child)
        self._post(lambda: self._memory.fork(parent, child))
        return agent

    def expect(
        self,
        agents: AgentId | Mapping[AgentId, float],
        steps: float | None = None,
        *,
        at: float | None = None,
    ) -> None:
        """Say who is needed when: ``expect({"ada": 0, "bob": 12})`` in steps from now,
        ``expect("ada", 3)``, or ``expect("ada", at=17.5)`` on the clock.

        Advice only: a wrong distance costs time and changes no text. Raises ``UnknownAgentError``.
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
        self._post(lambda: self._expect(distances, absolute=at is not None))

    def wake(self, agent: AgentId) -> None:
        """``agent`` is about to call, whatever was said before."""
        self._known(agent)
        self._post(lambda: self._apply(self.distances.wake(agent)))

    def advance(self, *, to: float | None = None) -> None:
        """Move the simulation's clock one step on, or ``to`` a time."""
        wall_s = self.parts.time_s()
        if to is not None and not to >= self.clock.now:
            raise RequestError(f"advance(to={to}): the clock is at {self.clock.now}")
        self._post(lambda: self._advance(wall_s, to))

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
        self._post(lambda: self._end_call(call, "cancelled", error))

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
        self._expire()
        batch = self._scheduler.schedule()
        self._memory.look_ahead.plan(self.parts.time_s())
        if batch is not None:
            self._flights.append(self.parts.runner.launch(batch))
            self.stats.steps += 1
        if self._flights and (
            batch is None or len(self._flights) >= self.parts.runner.steps_in_flight
        ):
            output = self.parts.runner.collect(self._flights.popleft())
            self.stats.compute_s += output.compute_s
            self._scheduler.update(output)
        elif batch is None and self._scheduler.has_work:
            self._stall()
        self._settle(self._scheduler.take_ended())
        return batch is not None or bool(self._flights) or self._scheduler.has_work

    def _stall(self) -> None:
        """Nothing can run until a copy arrives."""
        residency = self._memory.residency
        assert residency.transfers, "requests wait, nothing runs, and no copy is under way"
        start = self.parts.time_s()
        self.parts.link.wait(_IDLE_WAIT_S)
        residency.counters.stall_s += self.parts.time_s() - start

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
        look_ahead = self._memory.look_ahead
        self._wake.clear()
        if self._inbox or self._closed:
            return
        if self._memory.residency.transfers:
            self.parts.link.wait(_IDLE_WAIT_S / 10)
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

    # -- on the loop's thread -----------------------------------------------------------------

    def _accept(self, calls: list[Call]) -> None:
        for call in calls:
            request, params = call.request, call.request.params
            call.digest = self._keys.prompt_digest(call.tokens, params)
            sequence = Sequence(
                id=next(self._ids),
                agent=request.agent,
                domain=None,
                tokens=call.tokens,
                prompt_len=len(call.tokens),
                limit=len(call.tokens) + params.max_tokens,
                params=params,
                key=self._keys.key(request.agent, call.digest, params, request.sample_index),
                stop_ids=frozenset(params.stop_token_ids)
                | (frozenset() if params.ignore_eos else self.model.eos_ids),
                observer=call.observer,
            )
            call.sequence = sequence
            self._open[sequence.id] = call
            if request.timeout is not None:
                call.deadline_s = call.submitted_s + request.timeout
                heapq.heappush(self._deadlines, (call.deadline_s, sequence.id))
            if request.agent is not None:
                self._apply(self.distances.called(request.agent))
            self._scheduler.add(sequence)

    def _settle(self, ended: list[Sequence]) -> None:
        if not ended:
            return
        now_s = self.parts.time_s()
        calls = []
        for sequence in ended:
            call = self._open.pop(sequence.id)
            call.error, call.ended_s = sequence.error, now_s
            if sequence.error is None:
                self._keys.completed(sequence.agent, call.digest)
                self.stats.turns += 1
            else:
                self.stats.failed += 1
            self.stats.prompt_tokens += sequence.prompt_len
            self.stats.cached_tokens += sequence.cached_tokens
            self.stats.output_tokens += len(sequence.output)
            call.done = True
            calls.append(call)
        deliver(calls)

    def _ends(self, sequence: Sequence) -> None:
        if sequence.agent is not None:
            self._apply(self.distances.ended(sequence.agent))

    def _expire(self) -> None:
        if not self._deadlines:
            return
        now_s = self.parts.time_s()
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, id = heapq.heappop(self._deadlines)
            call = self._open.get(id)
            if call is not None:
                error = RequestTimeoutError(
                    f"request of agent {call.request.agent!r} did not end within "
                    f"timeout={call.request.timeout} s"
                )
                self._end_call(call, "timeout", error)

    def _end_call(
        self, call: Call, reason: Literal["cancelled", "timeout"], error: Exception
    ) -> None:
        if not call.done and call.sequence is not None:
            self._scheduler.cancel(call.sequence, reason, error)

    def _expect(self, distances: Mapping[AgentId, float], *, absolute: bool) -> None:
        now = 0.0 if absolute else self.clock.now
        for agent, steps in distances.items():
            try:
                at = now + float(steps)
            except (TypeError, ValueError, OverflowError):
                at = float("nan")
            self._apply(self.distances.expect(agent, at))

    def _advance(self, wall_s: float, to: float | None) -> None:
        if to is not None and to < self.clock.now:
            return  # another caller moved the clock past it meanwhile
        changes = self.distances.advance(wall_s, to=to)
        clock = self.clock
        self._memory.standing.now = clock.now
        self._memory.look_ahead.pace = Pace(clock.seconds_per_step, clock.jitter_s, wall_s)
        self._apply(changes)

    def _apply(self, changes: list[Change]) -> None:
        for agent, next_use in changes:
            self._memory.set_next_use(agent, next_use)

    def _shut(self) -> None:
        """Nothing runs any more: end what is open, and the copies."""
        with self._mode_lock:
            self._is_shut = True
            self._end_all()
        if self._death is None:
            while self._flights:  # a copy may wait for a step that was launched
                self.parts.runner.collect(self._flights.popleft())
            self._memory.residency.drain()
        self.parts.link.close()

    def _end_all(self) -> None:
        while self._inbox:
            self._inbox.popleft()()
        cause = self._death
        for call in list(self._open.values()):
            error = EngineClosedError(
                "the engine was closed" if cause is None else f"the engine died: {cause!r}"
            )
            error.__cause__ = cause
            call.error, call.done = error, True
        deliver(list(self._open.values()))
        self._open.clear()

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
        return Call(request, self.model, tokens, observer)

    def _observer(self, request: Request) -> TextObserver:
        if self.model.tokenizer is None:
            raise RequestError("stop strings need a tokenizer and this model has none; stop on ids")
        from scalesim.model.token_stream import TokenStream

        return TextObserver(TokenStream(self.model.tokenizer, request.params.stop))

    def _submit(self, calls: list[Call]) -> None:
        now_s = self.parts.time_s()
        for call in calls:
            call.submitted_s = now_s
        self._post(lambda: self._accept(calls))

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


def _close_if_alive(reference: weakref.ref[Engine]) -> None:
    engine = reference()
    if engine is not None:
        engine.close()
