"""Who drives the loop: the inbox through which everything reaches it in order, and the one thread
that empties it.

That thread is the engine's own, started by the first call that waits, or the user's, who calls
``step``. Knows no requests.

Callers may be interrupted anywhere, in a lock's own Python as well, so what they share with the
loop's thread is a ``SimpleQueue``, which is one instruction to them; and locks of the interpreter
(never a ``Condition`` or an ``Event``), which ``with`` takes and gives back whatever strikes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Literal

from scalesim.engine.interrupts import InterruptsWait
from scalesim.engine.loop import EngineLoop
from scalesim.engine.tickets import Put
from scalesim.errors import EngineClosedError, EngineModeError
from scalesim.foreign import Foreign, report, words_of
from scalesim.requests.call import Bell

_POLL_S = 0.005
_MAX_WAIT_S = 60.0
_log = logging.getLogger(__name__)
_LOOK_S = 1.0  # how often a waiting thread lets Ctrl-C in
Command = Callable[[], object]


class EngineThread:
    """Brings commands to ``loop`` and steps it, until ``close``."""

    def __init__(self, loop: EngineLoop) -> None:
        self._loop, self._parts = loop, loop.parts
        self._inbox: SimpleQueue[Command] = SimpleQueue()
        # ``post`` for who leaves, whom a closed engine owes nothing: one instruction, so that the
        # collector may use it within any lock, and where a second Ctrl-C strikes
        self.post_quietly: Put = self._inbox.put
        self._choice = threading.Lock()  # held to choose who drives
        self._driving = (
            threading.Lock()
        )  # whose it is may touch the loop: the thread, for its life;
        self._driver_id: int | None = None  # who calls step, for a step; close, in the end
        self._ending = threading.Lock()  # held to end what is open
        self._mode: Literal["none", "thread", "user"] = "none"
        self._thread: threading.Thread | None = None
        self._closed = False
        self._is_shut = False
        self._death: BaseException | None = None
        self._unsaid: BaseException | None = None  # what went wrong while the engine closed
        self._in_child = False  # of the process that the engine belongs to

    # -- from any thread ----------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        return self._closed

    def post(self, command: Command) -> None:
        """Have ``command`` run on the loop's thread, after all that was posted before. Raises
        ``EngineClosedError``."""
        self.check_open()
        self._inbox.put(command)
        if self._is_shut:  # it closed since the check above
            self._end_rest()

    def post_if_open(self, command: Command) -> None:
        with suppress(EngineClosedError):
            self.post(command)

    def wait_for(self, done: Bell) -> None:
        """Until the engine's own thread has ``done`` what was posted. Where the caller is it, or
        drives by ``step``, that comes later, and is not waited for."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        while thread.is_alive() and not done.wait(_LOOK_S):
            pass

    def check_open(self) -> None:
        """Raise ``EngineClosedError`` if the engine was closed, or died, or is another process's"""
        if self._closed:
            error = EngineClosedError(
                "this engine belongs to the process that made it, and this is a fork of that: make "
                "one here, or start processes by 'spawn'"
                if self._in_child
                else "the engine is closed; make a new one"
            )
            error.__cause__ = self._death
            raise error

    def check_process(self) -> None:
        """For who waits already: raise ``EngineClosedError`` in a fork of the engine's process,
        where nobody will tell him."""
        if self._in_child:
            self.check_open()

    def start_thread(self) -> None:
        """For a caller that is about to wait. Raises ``EngineModeError`` if ``step`` drives, or if
        the caller is the engine's own thread, which would wait for itself."""
        self.check_open()
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
            self.check_open()  # it may have closed since
            self._driver_id = threading.get_ident()
            try:
                is_busy = self._step()
            except BaseException as error:
                self._death, self._closed = error, True
                raise
            finally:
                self._driver_id = None
                if self._closed:
                    self._shut()
            interrupt, self._loop.interrupt = self._loop.interrupt, None
            if interrupt is not None:
                raise interrupt
            return is_busy

    def close(self) -> None:
        """End all open calls with ``EngineClosedError``, stop the thread and the link. Waits for a
        step that is running, but the one that calls it: that closes as it ends. Idempotent."""
        self._closed = True
        if self._in_child or self._driver_id == threading.get_ident():
            return
        self._inbox.put(_nothing)  # wakes the thread
        thread = self._thread
        if thread is not None:
            thread.join()
        with self._driving, InterruptsWait():
            self._shut()
            error, self._unsaid = self._unsaid, None
        if error is not None:
            raise error

    def after_fork(self) -> None:
        """In the child: nothing of this engine runs here, and nothing of it is the child's to
        end."""
        self._in_child = self._closed = self._is_shut = True
        self._thread = None

    def _drive(self, mode: Literal["thread", "user"]) -> None:
        self.check_open()
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
                while not self._closed:
                    if not self._step() and self._inbox.empty():
                        self._idle()
            except BaseException as error:
                self._death, self._closed = error, True
            self._shut()
        finally:
            self._driver_id = None
            self._driving.release()

    def _step(self) -> bool:
        while not self._inbox.empty():
            self._loop.obey(self._inbox.get())
        return self._loop.step()

    def _idle(self) -> None:
        """Wait for the inbox, for a copy that is under way, or for the next start window."""
        memory = self._parts.memory
        if self._closed:
            return
        if memory.is_moving:
            self._loop.obey(partial(self._parts.link.wait, _POLL_S))
            return
        wait_s = memory.opens_in_s
        if wait_s is not None:
            wait_s = min(max(wait_s, 1e-3), _MAX_WAIT_S)
        with suppress(Empty):
            self._loop.obey(self._inbox.get(timeout=wait_s))

    def _shut(self) -> None:
        """Nothing runs any more: end what is open, and the copies. The first error of that is
        raised by ``close``."""
        if self._is_shut:
            return
        self._is_shut = True
        with self._ending:
            self._end_all()
        self._end_rest()
        ends: list[Command] = [self._parts.link.close]
        if self._death is None:
            ends.insert(0, self._loop.drain)
        if self._loop.recorder is not None:
            ends.insert(0, self._loop.recorder.close)
        for end in ends:
            with Foreign() as raised:
                end()
            if raised.error is not None:
                report(_log, "closing the engine: %s", words_of(raised.error), error=raised.error)
                self._unsaid = self._unsaid or raised.error

    def _end_rest(self) -> None:
        """End what was posted while everything ended. Waits for nobody: who holds the lock looks
        again when it has given it back."""
        while not self._inbox.empty() and self._ending.acquire(blocking=False):
            try:
                self._end_all()
            finally:
                self._ending.release()

    def _end_all(self) -> None:
        self._loop.end_all(self._death)
        while not self._inbox.empty():
            with Foreign():  # calls that come now are told that it is over
                self._inbox.get_nowait()()


def _nothing() -> None:
    pass
