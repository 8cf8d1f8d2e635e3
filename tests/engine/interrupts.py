"""Ctrl-C at every point of a call where it can strike.

A signal's handler runs between instructions: after a call has returned, at the start of a function,
where a loop goes back. Here a trace function counts these points on the caller's thread, through
every frame of the call, the standard library's included, and raises ``KeyboardInterrupt`` at the
k-th. Whatever k: the interrupt reaches the caller (or his call is over), no place and no adapter is
held, nothing runs on, and the next call is answered.

``python -m tests.long interrupts`` tries every k of every kind of call; the tests some of them.
"""

from __future__ import annotations

import asyncio
import dis
import math
import random
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from types import FrameType
from typing import Any

from scalesim.config import CallLimits
from scalesim.engine.engine import Engine
from scalesim.engine.loop import EngineLoop
from scalesim.errors import HintWarning, RequestError
from scalesim.requests.deadlines import Deadlines
from scalesim.requests.limiter import RequestLimiter
from scalesim.requests.request import Request
from scalesim.requests.tickets import Desk
from scalesim.sampling.params import SamplingParams
from tests.engine.test_same_texts import check_empty
from tests.engine.world import tiny_engine
from tests.inside import part
from tests.trust.workload import make_parts

PLACES = 4
MORE = 2 * PLACES + 1  # than there are places
_CALLS = {dis.opmap[name] for name in ("CALL", "CALL_FUNCTION_EX", "CALL_KW") if name in dis.opmap}
_RESUMES = {dis.opmap["RESUME"]}
_BACK = {code for name, code in dis.opmap.items() if "JUMP_BACKWARD" in name}
Act = Callable[[Engine], object]


# -- where it strikes ---------------------------------------------------------------------------


@dataclass
class Strike:
    """Raises at the ``at``-th point, counted from 1; 0: only counts."""

    at: int = 0
    only: str = ""  # in files whose path has this
    points: int = 0
    where: str = ""
    _last: dict[FrameType, int] = field(default_factory=dict)

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if self.only not in frame.f_code.co_filename:
            return None
        if event == "call":
            frame.f_trace_opcodes = True
        elif event == "opcode":
            code = frame.f_code.co_code
            here, before = code[frame.f_lasti], self._last.get(frame, 0)
            self._last[frame] = here
            if here in _RESUMES or here in _BACK or before in _CALLS:
                self.points += 1
                if self.points == self.at:
                    self.where = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
                    self._last.clear()
                    handler = signal.getsignal(signal.SIGINT)
                    assert callable(handler)
                    handler(signal.SIGINT, frame)  # as a rule it raises
        elif event == "return":
            self._last.pop(frame, None)
        return self


@contextmanager
def striking(strike: Strike) -> Iterator[None]:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be switched off
    before = sys.gettrace()
    sys.settrace(strike)
    try:
        yield
    finally:
        sys.settrace(before)
        signal.signal(signal.SIGINT, handler)


# -- what is struck -----------------------------------------------------------------------------


def requests(engine: Engine, count: int) -> list[Request]:
    """Every second one uses an adapter."""
    return [
        engine.agent(index % 2).request([index, 2, 3], max_tokens=3, timeout=1e6)
        for index in range(count)
    ]


def generate(engine: Engine) -> object:
    return engine.generate(requests(engine, 2)[1])


def run(engine: Engine) -> object:
    return engine.run(requests(engine, MORE))


def stream(engine: Engine) -> object:
    return list(engine.stream(requests(engine, 2)[1]))


def leave_stream(engine: Engine) -> object:
    request = engine.agent(1).request([1, 2], max_tokens=50, ignore_eos=True)
    with engine.stream(request) as pieces:
        return next(pieces)


def generate_async(engine: Engine) -> object:
    async def main() -> object:
        return await asyncio.gather(*map(engine.generate_async, requests(engine, PLACES + 2)))

    return asyncio.run(main())


def stream_async(engine: Engine) -> object:
    async def main() -> object:
        return [piece async for piece in engine.stream_async(requests(engine, 2)[1])]

    return asyncio.run(main())


def refused(engine: Engine) -> object:
    """Calls that take their places before they are handed in."""
    part(engine, RequestLimiter).refuses = True
    try:
        return engine.run(requests(engine, PLACES))
    finally:
        part(engine, RequestLimiter).refuses = False


def submit(engine: Engine) -> object:
    return [engine.submit(request) for request in requests(engine, PLACES)]


def step(engine: Engine) -> object:
    calls = [engine.submit(request) for request in requests(engine, PLACES)]
    while not all(call.done for call in calls):
        engine.step()
    return calls


def expect(engine: Engine) -> object:
    """Hints are read on the caller's thread: one, few, many, one that is no number."""
    agents = [engine.agent(index).id for index in range(40)]
    engine.agent(0).expect(ticks=3)
    engine.expect(dict.fromkeys(agents[:3], 2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HintWarning)
        engine.expect({agents[0]: "soon", agents[1]: None})  # type: ignore[dict-item]
    engine.expect(dict.fromkeys(agents, 1.0))
    return engine.tick()


def mistaken(engine: Engine) -> object:
    """What is wrong is written out on the caller's thread."""
    with suppress(RequestError):
        engine.generate(Request([1, "word"]))  # type: ignore[list-item]
    with suppress(RequestError):
        engine.generate(Request([1], params=SamplingParams(max_tokens=-1)))
    return None


def choose(engine: Engine) -> object:
    return engine.agent(0).choose([1, 2, 3], [[4], [5, 6]])


def embed(engine: Engine) -> object:
    return engine.embed([[1, 2, 3]] * MORE)


ACTS: dict[str, Act] = {
    act.__name__: act
    for act in (
        generate, run, stream, leave_stream, generate_async, stream_async, refused, submit,
        step, expect, mistaken, choose, embed,
    )
}  # fmt: skip
SCORED = ("choose", "embed")  # need a model
DRIVEN = ("submit", "step")  # by their caller
SWALLOWED = ("Stream.__del__", "WeakSet.__init__.<locals>._remove")  # what strikes in these


def make_engine(name: str) -> Engine:
    """Fresh: the call that is struck is the one that starts the engine's thread."""
    if name in SCORED:
        return tiny_engine(max_open_requests=PLACES, device_pages=60, host_pages=0)
    parts = make_parts(0, 1, "raise")
    engine = Engine(replace(parts, limits=CallLimits(PLACES), time_s=time.monotonic))
    engine.agent(1, adapter="1/2")
    return engine


def only(name: str) -> str:
    """An event loop that is interrupted itself is asyncio's affair."""
    return "/scalesim/" if name.endswith("_async") else ""


# -- what must hold -----------------------------------------------------------------------------


class Lost(AssertionError):
    """What an interrupted call left behind."""


def settle(engine: Engine, driven: bool) -> None:
    """The next calls are answered, and then nothing is left of the one before."""
    request = Request([7, 8, 9], params=SamplingParams(max_tokens=2))
    if driven:
        while engine.step():  # what was submitted whole goes on to its end
            pass
        call = engine.submit(request)
        while not call.done:
            engine.step()
    else:
        for _ in range(2):
            engine.generate(request)
    found = {
        "places": part(engine, RequestLimiter).limit - part(engine, RequestLimiter).num_free,
        "calls at the gate": len(part(engine, RequestLimiter).calls()),
        "open calls": len(part(engine, EngineLoop).calls),
        "calls of an adapter": sum(info.open_calls for info in engine.adapters.list()),
        "deadlines": len(part(engine, Deadlines).due(math.inf)),
        "running": engine.parts.scheduler.num_running,
        "waiting": engine.parts.scheduler.num_waiting,
        "restarts": engine.stats.restarts,
        "tickets": len(part(engine, Desk).ties),
    }
    if left := {what: count for what, count in found.items() if count}:
        raise Lost(f"left behind: {left}")


@cache
def num_points(name: str) -> int:
    """How many points a call has; some fewer or more where threads run otherwise."""
    strike = Strike(only=only(name))
    with make_engine(name) as engine, striking(strike):
        ACTS[name](engine)
    return strike.points


def once(name: str, at: int) -> bool:
    """One call, struck at its ``at``-th point, and judged; whether it was struck. Raises
    ``Lost``."""
    strike, engine = Strike(at, only(name)), make_engine(name)
    interrupted = False
    try:
        with striking(strike):
            ACTS[name](engine)
    except KeyboardInterrupt:
        interrupted = True
    try:
        if strike.where and not interrupted and strike.where.split(",")[0] not in SWALLOWED:
            raise Lost("the interrupt did not reach the caller")
        _judged(engine, driven=name in DRIVEN)
    except Lost as lost:
        raise Lost(f"{name} struck at point {at}, in {strike.where}: {lost}") from lost
    return bool(strike.where)


def _judged(engine: Engine, driven: bool) -> None:
    """``settle`` and ``close``, on a thread that may hang."""
    errors: list[BaseException] = []

    def judge() -> None:
        try:
            settle(engine, driven)
            engine.close()
            check_empty(engine)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=judge, daemon=True)
    thread.start()
    thread.join(60.0)
    if thread.is_alive():
        raise Lost("the next call hangs")
    if errors:
        raise Lost(repr(errors[0])) from errors[0]


@cache
def cases() -> list[tuple[str, int]]:
    """Shuffled, so that a part of them is a sample."""
    found = [(name, at) for name in ACTS for at in range(1, num_points(name) + 1)]
    random.Random(0).shuffle(found)
    return found


def seed(number: int) -> Counter[str]:
    """The ``number``-th case, for the campaign."""
    name, at = cases()[number % len(cases())]
    struck = once(name, at)
    return Counter({"interrupted calls": 1, "struck": struck, name: 1})
