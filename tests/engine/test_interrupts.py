"""Ctrl-C anywhere in a call loses nothing: a sample of ``tests.engine.interrupts``."""

from __future__ import annotations

import gc
import random
import signal
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from scalesim.engine.inbox import Inbox
from scalesim.engine.loop import EngineLoop
from scalesim.interrupts import InterruptsWait, LostInterrupts
from scalesim.requests.tickets import Ticket
from tests.engine import interrupts
from tests.inside import part

SAMPLE = 12


class _Thing:
    pass


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    """A parent may have switched it off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", [name for name in interrupts.ACTS if name not in ("choose",)])
def test_an_interrupt_loses_nothing(name: str) -> None:
    points = interrupts.num_points(name)
    assert points > 100
    size = -(-points // (SAMPLE // 3 if name in interrupts.SCORED else SAMPLE))
    dice = random.Random(name)
    struck = [
        interrupts.once(name, dice.randrange(first, min(first + size, points + 1)))
        for first in range(1, points + 1, size)
    ]
    assert sum(struck) >= len(struck) // 2  # the rest of the calls had fewer points that time


@pytest.mark.parametrize("name", ["generate", "run", "stream", "generate_async", "refused"])
def test_who_cannot_clean_up_is_cleaned_up_after(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Ctrl-C strikes where the first is handled: the ticket's death does what is left."""

    def interrupted(ticket: Ticket) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ticket, "keep", interrupted)  # the first: all is done but this
        patch.setattr(Ticket, "close", interrupted)
        engine = interrupts.make_engine(name)
        with pytest.raises(KeyboardInterrupt):
            interrupts.ACTS[name](engine)
    gc.collect()
    interrupts.settle(engine, driven=False)
    engine.close()


def test_nobody_is_half_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C within ``forget`` or ``fork`` is raised when all of it is done."""
    engine = interrupts.make_engine("generate")

    def texts(name: str) -> list[tuple[int, ...]]:
        asked = engine.agent(name).request([1, 2, 3], max_tokens=4, ignore_eos=True)
        return [engine.generate(asked).token_ids for _ in range(2)]

    fresh = texts("ada")
    for within in (engine.adapters, part(engine, EngineLoop).keys, part(engine, Inbox)):
        act = "post" if within is part(engine, Inbox) else "forget"
        act = "unbind" if within is engine.adapters else act
        whole = getattr(within, act)

        def pressed(*given: Any, whole: Any = whole) -> Any:
            signal.raise_signal(signal.SIGINT)
            return whole(*given)

        with monkeypatch.context() as patch:
            patch.setattr(within, act, pressed)
            with pytest.raises(KeyboardInterrupt):
                engine.forget("ada")
        assert texts("ada") == fresh
    with monkeypatch.context() as patch:
        patch.setattr(part(engine, Inbox), "post", pressed)
        with pytest.raises(KeyboardInterrupt):
            engine.fork("ada", "child")
    engine.generate(engine.agent("child").request([1, 2, 3], max_tokens=1))
    assert engine.parts.memory.owners.agents["child"].paths
    engine.close()


def test_ctrl_c_waits_for_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = interrupts.make_engine("step")
    call = engine.submit(interrupts.requests(engine, 1)[0])
    step, seen = EngineLoop.step, []

    def pressed(loop: EngineLoop) -> bool:
        signal.raise_signal(signal.SIGINT)
        seen.append(step(loop))  # it is not left halfway
        return seen[-1]

    with monkeypatch.context() as patch:
        patch.setattr(EngineLoop, "step", pressed)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    assert seen == [True] and engine.stats.restarts == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    while not call.done:
        engine.step()
    assert len(call.result().token_ids) == 3
    engine.close()


def test_pressed_twice_it_is_handled_at_once() -> None:
    """In a step that hangs; what was under way is then made anew, and calls go on."""
    engine = interrupts.make_engine("step")
    call = engine.submit(interrupts.requests(engine, 1)[0])
    launch = engine.parts.runner.launch
    reached = []

    def hangs(batch: Any) -> Any:
        engine.parts.runner.launch = launch  # type: ignore[method-assign]
        signal.raise_signal(signal.SIGINT)
        reached.append(1)
        signal.raise_signal(signal.SIGINT)
        reached.append(2)

    engine.parts.runner.launch = hangs  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert reached == [1] and engine.stats.restarts == 1
    while not call.done:
        engine.step()
    assert len(call.result().token_ids) == 3
    engine.close()


def test_a_handler_of_ones_own_is_kept() -> None:
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    with InterruptsWait():
        signal.raise_signal(signal.SIGINT)
        assert not came
    assert came == [signal.SIGINT]
    with InterruptsWait():  # who sets one inside keeps it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_lost_interrupt_is_pressed_again() -> None:
    """Struck in the callback of a weak reference, where Python drops whatever is raised."""
    lock = threading.Lock()
    lock.acquire()
    watch = weakref.ref(thing := _Thing(), lambda dead: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), LostInterrupts():
        del thing
        lock.acquire(timeout=60)
    assert watch() is None
