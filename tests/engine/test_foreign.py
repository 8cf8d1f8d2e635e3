"""What other people's code raises, of any class, ends what it belongs to and nothing else.

The table has every place where the engine's thread runs such code; each raises each kind of error
there is, while neighbours speak.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scalesim
from scalesim.distance.estimates import NOTHING, Estimates, Source
from scalesim.engine.engine import Engine
from scalesim.engine.inbox import Inbox
from scalesim.engine.loop import EngineLoop
from scalesim.errors import AdapterError, EngineModeError, InternalError, ScaleSimError
from scalesim.interrupts import InterruptsWait
from scalesim.memory.leases.adapters import AdapterContent
from scalesim.memory.links.thread_link import ThreadLink
from scalesim.requests.call import TextObserver
from scalesim.requests.limiter import RequestLimiter
from scalesim.requests.reply import Reply
from scalesim.requests.request import Request
from scalesim.sampling.params import SamplingParams
from scalesim.testing.tag_parts import tag_parts
from scalesim.trace.file import TraceWriter
from tests.engine.test_adapters import folders
from tests.engine.world import tiny_engine
from tests.inside import part


class Own(BaseException):
    pass


class Unwritten(Own):
    """Its own words are foreign code as well."""

    def __str__(self) -> str:
        raise SystemExit

    __repr__ = __str__


KINDS: list[BaseException] = [
    SystemExit(3),
    KeyboardInterrupt(),
    asyncio.CancelledError(),
    GeneratorExit(),
    Own("mine"),
    Unwritten(),
]
NAMES = [type(kind).__name__ for kind in KINDS]
LONG = SamplingParams(max_tokens=8, ignore_eos=True, seed=1)


def neighbours(engine: Engine) -> list[Request]:
    return [
        Request([agent, 2, 3], agent=engine.agent(agent).id, params=LONG) for agent in (11, 12, 13)
    ]


def healthy(engine: Engine, restarts: int = 0) -> None:
    """Neighbours are answered, before and after; nothing was made anew, or as often as said."""
    replies = engine.run(neighbours(engine))
    assert all(isinstance(reply, Reply) and len(reply.token_ids) == 8 for reply in replies)
    assert engine.stats.restarts == restarts and not part(engine, Inbox).is_closed
    assert part(engine, RequestLimiter).num_free == part(engine, RequestLimiter).limit


def plain(**options: Any) -> Engine:
    """Without a model."""
    parts = tag_parts(device_pages=60, host_pages=20, max_num_seqs=4)
    return Engine(replace(parts, integrity="quarantine"), **options)


@pytest.fixture(autouse=True)
def deferred() -> Iterator[None]:
    """An engine is built on the main thread, where a ``KeyboardInterrupt`` is Ctrl-C unless that is
    deferred."""
    with InterruptsWait():
        yield


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with tiny_engine(integrity="quarantine") as made:
        yield made


@pytest.mark.parametrize("kind", [*KINDS, ZeroDivisionError(), StopIteration()],
                         ids=lambda kind: type(kind).__name__)  # fmt: skip
@pytest.mark.parametrize("at", [0, 3])
def test_a_mask(engine: Engine, kind: BaseException, at: int) -> None:
    def mask(prompt: Any, output: Any) -> None:
        if len(output) == at:
            raise kind

    before = engine.stats.restarts
    bad = Request([1], params=replace(LONG, mask=mask))
    mine, *others = engine.run([bad, *neighbours(engine)], return_exceptions=True)
    if isinstance(kind, Exception):
        assert mine is kind  # "with that error"
    else:
        assert isinstance(mine, InternalError) and mine.__cause__ is kind
    assert all(isinstance(other, Reply) for other in others)
    healthy(engine, before)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("running", [1, 4])
def test_masks_when_nobody_else_runs(samples: int, running: int) -> None:
    """Who fails leaves the others work, but nothing that runs: that is no stall."""

    def mask(prompt: Any, output: Any) -> None:
        raise SystemExit

    params = replace(LONG, mask=mask, n=samples)
    with tiny_engine(integrity="quarantine", max_num_seqs=running) as made:
        bad = [Request([each], params=params) for each in range(1, 6)]
        for _ in range(3):
            mine = made.run(bad, return_exceptions=True)
            assert all(isinstance(each, InternalError) for each in mine)
            assert made.stats.restarts == 0
        healthy(made)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_what_looks_at_tokens(
    engine: Engine, kind: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer, for stop strings; on the engine's thread."""

    def push(self: TextObserver, token: int) -> bool:
        raise kind

    monkeypatch.setattr(TextObserver, "push", push)
    bad = Request([1], params=replace(LONG, stop=("zz",)))
    mine, *others = engine.run([bad, *neighbours(engine)], return_exceptions=True)
    assert isinstance(mine, InternalError) and mine.__cause__ is kind
    assert all(isinstance(other, Reply) for other in others)
    healthy(engine)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize("where", ["changes", "called"])
def test_a_source(kind: BaseException, where: str) -> None:
    class Broken(Source):
        name = "broken"

        def changes(self, now: float) -> Estimates:
            if where == "changes" and now > 0:
                raise kind
            return NOTHING

        def called(self, agent: Any, now: float) -> None:
            if where == "called":
                raise kind

    with plain(sources=[Broken()]) as engine:
        healthy(engine)
        engine.tick()
        healthy(engine)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_what_combines_sources(kind: BaseException) -> None:
    class Says(Source):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def changes(self, now: float) -> Estimates:
            return Estimates([11, 12], [now + 5, now + 6])

    def combine(at: Any, confidence: Any) -> Any:
        raise kind

    with plain(sources=[Says("one"), Says("two")], combine=combine) as engine:
        healthy(engine)
        engine.tick()
        healthy(engine)


@contextmanager
def handled(kind: BaseException) -> Iterator[list[logging.LogRecord]]:
    """A log handler that raises."""
    seen: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record)
            raise kind

    handler, log = Handler(), logging.getLogger("scalesim")
    log.addHandler(handler)
    try:
        yield seen
    finally:
        log.removeHandler(handler)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_a_log_handler(kind: BaseException) -> None:
    class Broken(Source):
        def changes(self, now: float) -> Estimates:
            raise ZeroDivisionError

    with handled(kind) as seen, plain(sources=[Broken()]) as engine:
        healthy(engine)
        runner, launch = engine.parts.runner, engine.parts.runner.launch

        def once(batch: Any) -> Any:
            runner.launch = launch  # type: ignore[method-assign]
            raise kind

        runner.launch = once  # type: ignore[method-assign]
        healthy(engine, restarts=1)  # and a part may raise what it likes, once
    assert len(seen) == 2


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_a_waiters_event_loop(engine: Engine, kind: BaseException) -> None:
    """One that cannot be told must not keep others from being told, in the same step."""

    class Deaf(asyncio.SelectorEventLoop):
        deaf = False

        def call_soon_threadsafe(self, *args: Any, **options: Any) -> Any:
            if self.deaf:
                raise kind
            return super().call_soon_threadsafe(*args, **options)

    loop = Deaf()
    task = loop.create_task(engine.generate_async(Request([1, 2], params=LONG)))
    loop.run_until_complete(asyncio.sleep(0))
    loop.deaf = True
    healthy(engine)
    loop.deaf = False
    task.cancel()
    with suppress(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()
    healthy(engine)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_a_trace_that_cannot_be_written(
    kind: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(self: TraceWriter, *args: Any) -> None:
        raise kind

    monkeypatch.setattr(TraceWriter, "call", call)
    with plain(record=tmp_path / "trace.jsonl") as engine:
        healthy(engine)
        assert (
            part(engine, EngineLoop).recorder is not None
            and part(engine, EngineLoop).recorder.error is kind
        )


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_an_adapters_file(kind: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read while it is needed, on the link's thread or the engine's."""
    with tiny_engine(host_pages=0, integrity="quarantine") as engine:
        agent = engine.agent("ada", adapter=folders()[0])
        source = part(engine.adapters, AdapterContent).source

        def read(self: object) -> Any:
            raise kind

        with monkeypatch.context() as patch:
            patch.setattr(type(source), "read", read)
            with pytest.raises(AdapterError, match="could not be read"):
                agent.generate([1, 2, 3], max_tokens=4)
        healthy(engine)
        assert agent.generate([1, 2, 3], max_tokens=4, ignore_eos=True).usage.output_tokens == 4


@pytest.mark.parametrize("kind", KINDS[:2], ids=NAMES[:2])
def test_a_copy_of_the_link(kind: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(self: ThreadLink, copies: Any) -> None:
        raise kind

    monkeypatch.setattr(ThreadLink, "copy", copy)
    with tiny_engine(device_pages=24, host_pages=60, integrity="quarantine") as engine:
        rng = np.random.default_rng(0)
        for _ in range(2):
            for agent in range(6):
                prompt = rng.integers(0, 250, 150).tolist()
                reply = engine.agent(agent).generate(prompt, max_tokens=4, ignore_eos=True)
                assert len(reply.token_ids) == 4
        healthy(engine)


def test_a_callback_may_call_the_engine() -> None:
    """All but what would wait for itself; and close, which ends what is running after the step."""
    done: dict[str, object] = {}

    class Busy(Source):
        name = "busy"

        def changes(self, now: float) -> Estimates:
            if now == 1.0 and not done:
                for name, act in acts.items():
                    try:
                        done[name] = act()
                    except Exception as error:
                        done[name] = error
            if now == 2.0:
                engine.close()
                engine.close()
            return NOTHING

    engine = plain(sources=[Busy()])
    request = Request([1, 2], params=LONG)
    acts: dict[str, Callable[[], object]] = {
        "submit": lambda: engine.submit(request),
        "cancel": lambda: engine.cancel(engine.submit(request)),
        "expect": lambda: engine.expect(engine.agent("new").id, 3),
        "agent": lambda: engine.agent("newer"),
        "fork": lambda: engine.fork("newer", "newest"),
        "wake": lambda: engine.wake("newer"),
        "generate": lambda: engine.generate(request),
        "run": lambda: engine.run([request]),
        "stream": lambda: engine.stream(request),
        "step": engine.step,
    }
    healthy(engine)
    engine.tick()
    healthy(engine)
    waits = {"generate", "run", "stream", "step"}
    assert {name for name, got in done.items() if isinstance(got, Exception)} == waits
    assert all(isinstance(done[name], EngineModeError) for name in waits)
    call: Any = done["submit"]
    assert call.result().token_ids
    engine.tick()
    with suppress(ScaleSimError):
        engine.generate(request)
    engine.close()
    assert part(engine, Inbox).is_closed


def test_foreign_code_is_run_in_one_way() -> None:
    """Where the engine's thread runs, errors are caught by ``Foreign`` or by their own class: a
    bare ``except Exception`` lets ``SystemExit`` through; and ``shown`` writes them out, for an
    error's own ``repr`` is foreign code too."""
    root = Path(scalesim.__file__).parent
    files = ["engine/advice", "engine/inbox", "engine/loop", "engine/open_calls", "engine/recovery"]
    files += ["engine/thread", "requests/call", "requests/deadlines", "requests/limiter"]
    files += ["requests/tickets", "trace/recorder"]
    paths = [root / f"{name}.py" for name in files]
    paths += [path for name in ("memory", "scheduler", "distance")
              for path in sorted((root / name).rglob("*.py"))]  # fmt: skip
    wide = [
        f"{path.name}:{number}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"except Exception|suppress\(Exception|(error|cause)!r", line)
    ]
    assert not wide, f"use scalesim.foreign.Foreign in {', '.join(wide)}"
