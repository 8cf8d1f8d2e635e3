"""Ctrl-C deferred to the end of a step, let through where it must be, and not lost.

A signal's handler runs between any two instructions of the main thread. Within a step,
``KeyboardInterrupt`` would leave the scheduler and memory half changed, so it is deferred there,
and around the standard library's ``Event`` and ``Condition``: interrupted inside, these leave their
lock locked for ever.

Code that catches whatever other people's code raises must let Ctrl-C through: ``is_ctrl_c``.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

_AGAIN_S = 0.01


class InterruptsWait:
    """Inside, Ctrl-C is noted, and handled on leaving as it would have been before: as a rule it
    raises ``KeyboardInterrupt`` then. Pressed again, it is handled at once as well, for code that
    hangs.

    Signals reach the main thread only; on others, and where no Python function handles them, this
    does nothing.
    """

    __slots__ = ("_before", "_came")

    def __init__(self) -> None:
        self._before: Callable[[int, FrameType | None], object] | None = None
        self._came = False

    def __enter__(self) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            return
        before = signal.getsignal(signal.SIGINT)
        if callable(before):
            self._before = before
            signal.signal(signal.SIGINT, self._note)

    def __exit__(self, *error: object) -> None:
        before = self._before
        if before is None:
            return
        now = signal.signal(signal.SIGINT, before)
        if now != self._note:  # somebody has set another meanwhile
            signal.signal(signal.SIGINT, now)
        if self._came:
            before(signal.SIGINT, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self._came = self._came, True
        if again and self._before is not None:
            self._before(number, frame)


class LostInterrupts:
    """Inside, a lost Ctrl-C is pressed again. Python drops what is raised in ``__del__`` or in the
    callback of a weak reference, the standard library's own included, and tells nobody but
    ``sys.unraisablehook``."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = sys.unraisablehook
        sys.unraisablehook = self._look

    def __exit__(self, *error: object) -> None:
        sys.unraisablehook = self._before

    def _look(self, dropped: sys.UnraisableHookArgs) -> None:
        if is_ctrl_c(dropped.exc_type):  # later: raised in here, it would be lost as well
            main = threading.get_ident()
            threading.Timer(_AGAIN_S, signal.pthread_kill, (main, signal.SIGINT)).start()
        else:
            self._before(dropped)


def is_ctrl_c(kind: type[BaseException] | None) -> bool:
    """Whether an error of class ``kind``, raised on this thread just now, is Ctrl-C on its way to
    the caller. Where Ctrl-C is deferred or ignored, and on other threads, a ``KeyboardInterrupt``
    is what a callback raised, or what ended a callback that hung."""
    if kind is None or not issubclass(kind, KeyboardInterrupt):
        return False
    if threading.get_ident() != threading.main_thread().ident:
        return False
    handler = signal.getsignal(signal.SIGINT)
    is_deferred = isinstance(getattr(handler, "__self__", None), InterruptsWait)
    return callable(handler) and not is_deferred
