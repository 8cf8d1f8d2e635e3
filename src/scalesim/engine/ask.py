"""Questions to the engine: a function that runs on the engine's thread, between two steps, and
whose answer its caller waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from scalesim.engine.inbox import Inbox
from scalesim.engine.thread import EngineThread
from scalesim.errors import EngineModeError
from scalesim.foreign import Foreign
from scalesim.requests.tickets import Bell

T = TypeVar("T")


def ask(thread: EngineThread, inbox: Inbox, question: Callable[[], T]) -> T:
    """The answer to ``question`` from the engine's thread, which is started; raises what the
    question raises. Where a program drives ``step()``, the steps that it takes are made here."""
    answers: list[T] = []
    raised, done = Foreign(), Bell()

    def answer() -> None:
        with raised:  # a question that fails breaks nothing
            answers.append(question())
        done.ring()

    is_stepped = False
    try:
        thread.start_thread()
    except EngineModeError:
        is_stepped = True
    inbox.post(answer)
    while is_stepped and not answers and raised.error is None:
        thread.step()  # raises for a question from within a step, which would wait for itself
    while not is_stepped and not done.wait():
        inbox.check_process()
    if raised.exception is not None:
        raise raised.exception
    return answers[0]
