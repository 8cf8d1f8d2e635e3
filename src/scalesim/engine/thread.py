"""The engine thread: drives the loop, on a thread that the first waiting call starts, or on the
user's own thread by ``step``. Knows no requests."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Literal

from scalesim.engine.inbox import Inbox
from scalesim.engine.loop import EngineLoop
from scalesim.errors import EngineModeError
from scalesim.foreign import Foreign, report, words_of
from scalesim.interrupts import InterruptsWait
from scalesim.requests.tickets import Bell

_COPY_WAIT_S = 0.005
_log = logging.getLogger(__name__)


class EngineThread:
    """Brings the commands of ``inbox`` to ``loop`` and steps it, until ``close``."""

    def __init__(self, loop: EngineLoop, inbox: Inbox) -> None:
        self._loop, self._parts, self._inbox = loop, loop.parts, inbox
        self._choice = threading.Lock()  # held while the mode is chosen
        # Its holder alone may touch the loop: the engine's thread, for life; a caller of ``step``,
        # for that step; ``close``, in the end.
        self._driving = threading.Lock()
        self._driver_id: int | None = None  # the thread that is driving
        self._mode: Literal["none", "thread", "user"] = "none"
        self._thread: threading.Thread | None = None
        self._unsaid: BaseException | None = None  # what went wrong while the engine closed

    # -- from any thread ----------------------------------------------------------------------

    def wait_for(self, done: Bell) -> None:
        """Wait until the engine's own thread rings ``done``. A caller that is this thread, or that
        drives by ``step``, does not wait: the command runs later."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        while thread.is_alive() and not done.wait():
            pass

    def start_thread(self) -> None:
        """For a caller that is about to wait. Raises ``EngineModeError`` if ``step`` drives, or if
        the caller is the engine's own thread, which would wait for itself."""
        self._inbox.check_open()
        if self._driver_id == threading.get_ident():
            raise EngineModeError(
                "a call that waits was made on the engine's own thread, by a source of distances "
                "or another callback: it would wait for itself; hand it in from another thread"
            )
        self._parts.before_wait()
        if self._thread is None:
            self._drive("thread")

    def step(self) -> bool:
        """One step on the caller's thread; False when there was nothing to do. Threads take turns.

        Raises ``EngineModeError`` if the engine's thread drives, or within a step, and what the
        engine died of, if it does. Ctrl-C is raised when the step is over (``InterruptsWait``).
        """
        self._drive("user")
        if self._driver_id == threading.get_ident():
            raise EngineModeError("step() was called within a step, by a callback: return from it")
        with self._driving, InterruptsWait():
            self._inbox.check_open()  # it may have closed since
            self._driver_id = threading.get_ident()
            try:
                is_busy = self._step()
            except BaseException as error:
                self._inbox.close(error)
                raise
            finally:
                self._driver_id = None
                if self._inbox.is_closed:
                    self._shut()
            recovery = self._loop.recovery
            interrupt, recovery.interrupt = recovery.interrupt, None
            if interrupt is not None:
                raise interrupt
            return is_busy

    def close(self) -> None:
        """End all open calls with ``EngineClosedError``, stop the thread and the link. Waits for a
        step that is running, but the one that calls it: that closes as it ends. Idempotent."""
        self._inbox.close()  # wakes the thread
        if self._inbox.in_child or self._driver_id == threading.get_ident():
            return
        thread = self._thread
        if thread is not None:
            thread.join()
        with self._driving, InterruptsWait():
            self._shut()
            error, self._unsaid = self._unsaid, None
        if error is not None:
            raise error

    def _drive(self, mode: Literal["thread", "user"]) -> None:
        self._inbox.check_open()
        if self._mode == mode and mode == "user":
            return
        with self._choice:
            if self._mode not in ("none", mode):
                raise EngineModeError(
                    "step() drives this engine: submit() and poll, or use another engine for calls "
                    "that wait"
                    if self._mode == "user"
                    else "the engine's own thread drives it; step() is for engines without calls "
                    "that wait"
                )
            self._mode = mode
            if mode == "thread" and self._thread is None:
                # It names itself when it runs: whoever starts it may be stopped before it does.
                thread = threading.Thread(target=self._run, name="scalesim-engine", daemon=True)
                with InterruptsWait():  # starting waits within an Event
                    thread.start()

    # -- on the loop's thread -----------------------------------------------------------------

    def _run(self) -> None:
        if not self._driving.acquire(blocking=False):
            return  # another was started meanwhile, or everything is being closed
        try:
            self._driver_id, self._thread = threading.get_ident(), threading.current_thread()
            try:
                while not self._inbox.is_closed:
                    if not self._step() and self._inbox.is_empty:
                        self._idle()
            except BaseException as error:
                self._inbox.close(error)
            self._shut()
        finally:
            self._driver_id = None
            self._driving.release()

    def _step(self) -> bool:
        while not self._inbox.is_empty:
            self._loop.run_command(self._inbox.take())
        return self._loop.step()

    def _idle(self) -> None:
        """Wait for the inbox, or for a copy that is under way."""
        memory = self._parts.memory
        if self._inbox.is_closed:
            return
        if memory.is_moving:
            self._loop.run_command(partial(self._parts.link.wait, _COPY_WAIT_S))
            return
        self._loop.run_command(self._inbox.take())

    def _shut(self) -> None:
        """Nothing runs any more: end what is open, and the copies. The first error of that is
        raised by ``close``."""
        inbox, loop = self._inbox, self._loop
        if inbox.is_shut:
            return
        loop.calls.end_all(inbox.death)
        inbox.shut()
        ends: list[Callable[[], object]] = [] if loop.recorder is None else [loop.recorder.close]
        if inbox.death is None:
            ends.append(loop.drain)
        for end in (*ends, self._parts.link.close):
            with Foreign() as raised:
                end()
            if raised.error is not None:
                report(_log, "closing the engine: %s", words_of(raised.error), error=raised.error)
                self._unsaid = self._unsaid or raised.error
