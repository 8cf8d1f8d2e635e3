"""Who drives the loop: the inbox through which everything reaches it in order, and the one thread
that empties it.

That thread is the engine's own, started by the first call that waits, or the user's, who calls
``step``. Knows no requests.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from scalesim.errors import EngineClosedError, EngineModeError
from scalesim.loop import Loop

_POLL_S = 0.005
_MAX_WAIT_S = 60.0
_LOOK_S = 1.0  # how often a waiting thread lets Ctrl-C in


class Driver:
    """Brings commands to ``loop`` and steps it, until ``close``."""

    def __init__(self, loop: Loop) -> None:
        self._loop, self._parts = loop, loop.parts
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._lock = threading.Lock()  # held to change the mode, and to end what is open
        self._mode: Literal["none", "thread", "user"] = "none"
        self._thread: threading.Thread | None = None
        self._closed = False
        self._is_shut = False
        self._death: BaseException | None = None

    # -- from any thread ----------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        return self._closed

    def post(self, command: Callable[[], None]) -> None:
        """Have ``command`` run on the loop's thread, after all that was posted before. Raises
        ``EngineClosedError``."""
        self.check_open()
        self._inbox.append(command)
        if not self._wake.is_set():
            self._wake.set()
        if self._is_shut:  # it closed since the check above
            with self._lock:
                self._end_all()

    def post_if_open(self, command: Callable[[], None]) -> None:
        with suppress(EngineClosedError):
            self.post(command)

    def wait_for(self, done: threading.Event) -> None:
        """Until the engine's own thread has ``done`` what was posted. Where the caller is it, or
        drives by ``step``, that comes later, and is not waited for."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        while thread.is_alive() and not done.wait(_LOOK_S):
            pass

    def post_quietly(self, command: Callable[[], None]) -> None:
        """``post`` for the garbage collector, who may run within any lock: the loop is not woken,
        which a loop that has work does not need."""
        self._inbox.append(command)

    def check_open(self) -> None:
        """Raise ``EngineClosedError`` if the engine was closed, or died."""
        if self._closed:
            error = EngineClosedError("the engine is closed; make a new one")
            error.__cause__ = self._death
            raise error

    def start_thread(self) -> None:
        """For a caller that is about to wait. Raises ``EngineModeError`` if ``step`` drives, or if
        the caller is the engine's own thread, which would wait for itself."""
        if self._thread is threading.current_thread():
            raise EngineModeError(
                "a call that waits was made on the engine's own thread, by a source of distances "
                "or another callback: it would wait for itself; hand it in from another thread"
            )
        self._parts.before_wait()
        if self._thread is None:
            self._drive("thread")

    def step(self) -> bool:
        """One step on the caller's thread; False when there was nothing to do. Raises
        ``EngineModeError`` if the thread drives, and what the engine died of, if it does."""
        self._drive("user")
        try:
            return self._step()
        except Exception as error:
            self._death = error
            self.close()
            raise

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

    def _drive(self, mode: Literal["thread", "user"]) -> None:
        self.check_open()
        if self._mode == mode and mode == "user":
            return
        with self._lock:
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
                self._thread = threading.Thread(
                    target=self._run, name="scalesim-engine", daemon=True
                )
                self._thread.start()

    # -- on the loop's thread -----------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closed:
                if not self._step() and not self._inbox:
                    self._idle()
        except BaseException as error:
            self._death = error
            self._closed = True
        self._shut()

    def _step(self) -> bool:
        while self._inbox:
            self._loop.obey(self._inbox.popleft())
        return self._loop.step()

    def _idle(self) -> None:
        """Wait for the inbox, for a copy that is under way, or for the next start window."""
        look_ahead = self._parts.memory.look_ahead
        self._wake.clear()
        if self._inbox or self._closed:
            return
        if self._parts.memory.residency.transfers:
            self._parts.link.wait(_POLL_S)
        elif look_ahead.opens_in_s is None:
            self._wake.wait()
        else:
            self._wake.wait(min(max(look_ahead.opens_in_s, 1e-3), _MAX_WAIT_S))

    def _shut(self) -> None:
        """Nothing runs any more: end what is open, and the copies."""
        with self._lock:
            self._is_shut = True
            self._end_all()
        if self._loop.recorder is not None:
            self._loop.recorder.close()
        if self._death is None:
            self._loop.drain()
        self._parts.link.close()

    def _end_all(self) -> None:
        while self._inbox:
            with suppress(Exception):  # it ends anyway; calls that were let in are told why
                self._inbox.popleft()()
        self._loop.end_all(self._death)
