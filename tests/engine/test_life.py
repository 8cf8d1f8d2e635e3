"""The end of an engine, and of those who wait for it: closing from everywhere, forks, deadlines."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from scalesim.config import CallLimits
from scalesim.engine import forks
from scalesim.engine.engine import Engine
from scalesim.engine.inbox import Inbox
from scalesim.engine.loop import EngineLoop
from scalesim.errors import (
    EngineClosedError,
    EngineFullError,
    EngineModeError,
    RequestTimeoutError,
    ScaleSimError,
)
from scalesim.requests.call import Call
from scalesim.requests.deadlines import Deadlines
from scalesim.requests.limiter import RequestLimiter
from scalesim.requests.prepare import Intake
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams
from scalesim.testing.tag_parts import tag_parts
from tests.engine.world import SHAPE
from tests.inside import part, reachable
from tests.model_folders import write_dummy_model
from tests.text.tokenizers_made_here import byte_level

SHORT = Request([1, 2, 3], params=SamplingParams(max_tokens=2))
LONG = Request([1, 2], params=SamplingParams(max_tokens=500, ignore_eos=True))


def new(places: int = 16384, when_full: Any = "wait", **options: Any) -> Engine:
    parts = tag_parts(device_pages=60, host_pages=20, max_num_seqs=4)
    return Engine(replace(parts, limits=CallLimits(places, when_full)), **options)


@contextmanager
def threads(*acts: Callable[[], object]) -> Iterator[list[Any]]:
    """All at once; what they gave or raised, in the end. None may hang."""
    got: list[Any] = [None] * len(acts)

    def run(index: int) -> None:
        try:
            got[index] = acts[index]()
        except BaseException as error:
            got[index] = error

    running = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(acts))]
    for thread in running:
        thread.start()
    yield got
    for thread in running:
        thread.join(60.0)
        assert not thread.is_alive(), "hangs"


# -- closing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", range(3))
def test_closing_beside_a_step(rounds: int) -> None:
    """Whoever steps is let finish; afterwards every call has ended, those in the inbox too."""
    engine, calls = new(), []
    inside, accept = threading.Event(), part(engine, EngineLoop).accept

    def slow(batch: list[Call]) -> None:
        inside.set()
        while not part(engine, Inbox).is_closed:
            pass
        accept(batch)

    def drive() -> None:
        while True:
            engine.step()

    for number in range(3):
        if number == rounds:
            part(engine, EngineLoop).accept = slow  # type: ignore[method-assign]
        calls.append(engine.submit(LONG))
        if number < rounds:
            engine.step()
    with threads(drive, lambda: inside.wait(60.0) and engine.close(), engine.step) as got:
        pass
    assert isinstance(got[0], EngineClosedError)
    assert all(call.done and isinstance(call.error, EngineClosedError) for call in calls)
    assert part(engine, RequestLimiter).num_free == part(engine, RequestLimiter).limit and not len(
        part(engine, EngineLoop).calls
    )


@pytest.mark.parametrize("seed", range(6))
def test_closing_while_calls_are_made(seed: int) -> None:
    """By several threads at once, with callers in line, reading, awaiting and coming."""
    engine = new(places=2)
    engine.generate(SHORT)
    start, pause = threading.Barrier(9), threading.Event()

    def caller(act: Callable[[], object]) -> object:
        start.wait()
        while True:
            act()

    def close() -> None:
        start.wait()
        pause.wait(seed / 1e3)
        engine.close()

    acts: list[Callable[[], object]] = [
        lambda: engine.generate(SHORT),
        lambda: engine.run([LONG] * 5),
        lambda: list(engine.stream(LONG)),
        lambda: asyncio.run(engine.generate_async(SHORT)),
        lambda: engine.expect(engine.agent(1).id, 2),
        lambda: suppressed(EngineFullError, engine.submit, SHORT),
    ]
    with threads(*(partial(caller, act) for act in acts), close, close, close) as got:
        pass
    assert [type(each) for each in got[:6]] == [EngineClosedError] * 6, got
    assert got[6:] == [None] * 3
    assert (
        part(engine, RequestLimiter).num_free == part(engine, RequestLimiter).limit
        and not part(engine, RequestLimiter).calls()
    )


def suppressed(kind: type[Exception], act: Callable[..., object], *args: object) -> None:
    with suppress(kind):
        act(*args)


def test_steps_take_turns() -> None:
    """Two threads that step never do it at the same time; a callback may not step."""
    engine, inside, worst = new(), [0], [0]
    loop = part(engine, EngineLoop)
    step = loop.step

    def counted() -> bool:
        inside[0] += 1
        worst[0] = max(worst[0], inside[0])
        is_busy = step()
        with pytest.raises(EngineModeError, match="within a step"):
            engine.step()
        inside[0] -= 1
        return is_busy

    loop.step = counted  # type: ignore[method-assign]
    calls = [engine.submit(SHORT) for _ in range(20)]

    def drive() -> None:
        while not all(call.done for call in calls):
            engine.step()

    with threads(*[drive] * 4) as got:
        pass
    assert got == [None] * 4 and worst == [1]
    engine.close()


def test_dropped_while_it_is_closed() -> None:
    """Closing twice, and the collector's finalizer behind it."""
    engine = new()
    engine.generate(SHORT)
    engine.close()
    engine.close()
    del engine
    gc.collect()


def test_an_error_in_closing_is_the_closers_and_ends_everything_first() -> None:
    engine = new()
    call = engine.submit(LONG)
    engine.step()
    link, closed = engine.parts.link, engine.parts.link.close

    def broken() -> None:
        closed()
        raise SystemExit(3)

    link.close = broken  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        engine.close()
    assert call.done and isinstance(call.error, EngineClosedError)
    engine.close()


# -- forks ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_is_told(tmp_path: Path) -> None:
    """Every call raises at once, also one that waits, and those that are open have an owner in the
    parent only. The trace is the parent's. A child may make an engine of its own."""
    trace = tmp_path / "trace.jsonl"
    engine = new(record=trace)
    ada = engine.agent("ada")
    ada.generate([1, 2, 3], max_tokens=2)
    stream = engine.stream(LONG)
    next(stream)
    taken = threading.Lock()

    async def awaited() -> None:
        await engine.generate_async(SHORT)

    acts: dict[str, Callable[[], object]] = {
        "generate": lambda: engine.generate(replace(SHORT, timeout=2.0)),
        "run": lambda: engine.run([SHORT]),
        "new stream": lambda: engine.stream(SHORT),
        "open stream": lambda: list(stream),
        "async": lambda: asyncio.run(awaited()),
        "submit": lambda: engine.submit(SHORT),
        "step": engine.step,
        "tick": engine.tick,
        "snapshot": lambda: engine.snapshot(tmp_path / "s"),
        "fork a world": engine.fork_world,
        "agent": lambda: engine.agent("bob"),
        "expect": lambda: engine.expect("ada", 1),
        "adapter": lambda: engine.adapters.add("a", "b"),
    }

    def child() -> str:
        wrong = []
        for name, act in acts.items():
            try:
                act()
                wrong.append(f"{name} did not raise")
            except EngineClosedError as error:
                if "process" not in str(error):
                    wrong.append(f"{name}: {error}")
            except BaseException as error:
                wrong.append(f"{name}: {error!r}")
        engine.close()
        own = new()
        if len(own.generate(SHORT).token_ids) != 2:
            wrong.append("its own engine")
        own.close()
        return "; ".join(wrong)

    with ExitStack() as stack:
        stack.enter_context(taken)
        for _, found in reachable(engine):
            if isinstance(found, type(taken)) and found.acquire(blocking=False):
                stack.callback(found.release)
        said = forked(child)  # as if other threads were just within these
    assert said == ""
    stream.close()
    assert len(ada.generate([1, 2, 3], max_tokens=2).token_ids) == 2
    engine.close()
    lines = trace.read_text().splitlines()
    assert len(lines) == len(set(lines)) >= 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_what_fails_at_a_fork_costs_no_other_engine(tmp_path: Path) -> None:
    """An engine that was closed, its trace with it, lives on while somebody holds it; and a part
    may raise what it likes. The engine that is told after them is told."""

    class Broken:
        def after_fork(self) -> None:
            raise SystemExit("broken")

    broken, closed = Broken(), new(record=tmp_path / "trace.jsonl")
    closed.generate(SHORT)
    closed.close()
    closed.after_fork()  # raises nothing
    forks.tell(broken)
    engine = new()

    def child() -> str:
        try:
            engine.generate(SHORT)
        except EngineClosedError:
            return ""
        return "it was not told"

    assert forked(child) == ""
    engine.close()


def forked(act: Callable[[], str]) -> str:
    """What ``act`` gives in a child, which ends as a program does, by closing what is open."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # ends a child that hangs, by the system's hand
        try:
            said = act()
        except BaseException as error:
            said = repr(error)
        try:
            os.write(writing, said.encode())
            gc.collect()
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0, "the child did not end by itself"
    return said


# -- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [1e5, 1e10, math.inf])
def test_far_deadlines_cost_nothing(timeout: float) -> None:
    """Not a place in memory once their call is over, nor an error of the clock's while it waits."""
    engine = new(places=3)
    for _ in range(4):
        replies = engine.run([replace(SHORT, timeout=timeout) for _ in range(50)])
        assert len(replies) == 50

    async def gathered() -> int:
        calls = (engine.generate_async(replace(SHORT, timeout=timeout)) for _ in range(50))
        return len(await asyncio.gather(*calls))

    assert asyncio.run(gathered()) == 50
    assert list(engine.stream(replace(SHORT, timeout=timeout)))
    assert len(part(engine, Deadlines)) < 60
    engine.close()


def test_time_in_line_is_the_loops() -> None:
    """In the order of their deadlines, whatever their places in the line; who is late leaves it."""
    now = [0.0]
    parts = tag_parts(device_pages=60, host_pages=20, max_num_seqs=4)
    parts = replace(parts, limits=CallLimits(1), time_s=lambda: now[0])
    engine, ended = Engine(parts), []
    calls = [
        part(engine, Intake).prepare(replace(LONG, timeout=timeout))
        for timeout in (1000.0, 30.0, 10.0, math.inf, 20.0)
    ]
    for call in calls:
        call.begins(0.0)
        call.digest = call.number = 0
    part(engine, EngineLoop).accept(calls)
    for now[0] in (5.0, 10.0, 20.0, 30.0):
        engine.step()
        ended.append([call.done for call in calls])
    assert [sum(row) for row in ended] == [0, 1, 2, 3]
    assert [calls[i].done for i in (1, 2, 4)] == [True] * 3
    for index in (1, 2, 4):
        with pytest.raises(RequestTimeoutError, match="max_open_requests=1"):
            calls[index].result()
    engine.cancel(calls[0])
    while not calls[0].done or not len(part(engine, EngineLoop).calls):
        engine.step()
    assert list(part(engine, EngineLoop).calls) == [calls[3]]
    engine.close()
    assert all(isinstance(call.error, ScaleSimError) for call in calls)


def test_an_engine_that_cannot_be_made_leaves_no_threads(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    write_dummy_model(tmp_path / "model", SHAPE, seed=1)
    byte_level().save(str(tmp_path / "model" / "tokenizer.json"))
    sizes = {"device_memory": 2**20, "host_memory": 2**20, "device": "cpu"}
    wrongs: list[dict[str, Any]] = [
        {"record": tmp_path / "no" / "trace"}, {"sources": [3]}, {"device_memory": 1},
        {"chat_template": "{{"}, {"chat_template": str(tmp_path)}, {"max_model_len": 10**6},
        {"policy": "best"}, {"planner": "none"},
    ]  # fmt: skip
    for wrong in wrongs:
        with pytest.raises((OSError, AttributeError, TypeError, ScaleSimError)):
            Engine(tmp_path / "model", **{**sizes, **wrong})
        gc.collect()
        assert set(threading.enumerate()) <= before, wrong
    (tmp_path / "model" / "generation_config.json").write_text('{"temperature": -1}')
    with pytest.raises(ScaleSimError):
        Engine(tmp_path / "model", **sizes)
    assert set(threading.enumerate()) <= before
