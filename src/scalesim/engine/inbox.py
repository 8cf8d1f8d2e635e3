"""The inbox: the queue by which commands reach the loop's thread, in the order of posting.

A caller may be interrupted between any two instructions, also within the Python code of a
``Condition`` or an ``Event``. So callers share with the loop's thread a ``SimpleQueue``, whose
``put`` is one instruction, and plain locks, which ``with`` gives back whatever happens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

from scalesim.errors import EngineClosedError
from scalesim.foreign import Foreign

Command = Callable[[], object]


class Inbox:
    """Commands for the loop's thread, until the engine is closed.

    ``close`` comes first: nothing may be posted from then on. When the open calls have ended,
    ``shut`` runs the commands that were posted meanwhile; their callers hear of the end.
    """

    def __init__(self) -> None:
        self._commands: SimpleQueue[Command] = SimpleQueue()
        # ``post`` for a caller that leaves, to which a closed engine owes nothing: one instruction,
        # so that the collector may use it within any lock, and where a second Ctrl-C strikes
        self.post_quietly = self._commands.put
        self.is_closed = self.is_shut = False
        self.death: BaseException | None = None  # what the engine died of, if it did
        self.in_child = False  # of the process that the engine belongs to
        self._ending = threading.Lock()  # held to run what was posted while the engine closed

    def post(self, command: Command) -> None:
        """Have ``command`` run on the loop's thread, behind all commands posted before. Raises
        ``EngineClosedError``."""
        self.check_open()
        self._commands.put(command)
        if self.is_shut:  # it closed since the check above
            self._run_rest()

    def post_if_open(self, command: Command) -> None:
        with suppress(EngineClosedError):
            self.post(command)

    def check_open(self) -> None:
        """Raise ``EngineClosedError`` if the engine was closed, died, or is of another process."""
        if self.is_closed:
            error = EngineClosedError(
                "this engine belongs to the process that made it, and this is a fork of that: make "
                "one here, or start processes by 'spawn'"
                if self.in_child
                else "the engine is closed; make a new one"
            )
            error.__cause__ = self.death
            raise error

    def check_process(self) -> None:
        """For a caller that waits: raise ``EngineClosedError`` in a fork of the engine's process,
        where no thread will ever tell the caller of an end."""
        if self.in_child:
            self.check_open()

    def close(self, death: BaseException | None = None) -> None:
        """Take no further commands, and wake the loop's thread. ``death`` is what the engine died
        of."""
        self.death, self.is_closed = self.death or death, True
        if not self.in_child:
            self._commands.put(_nothing)

    def after_fork(self) -> None:
        """In the child of a fork: the engine does not run here, and the child ends nothing of
        it."""
        self.in_child = self.is_closed = self.is_shut = True

    # -- on the loop's thread -----------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        return self._commands.empty()

    def take(self) -> Command:
        """The oldest command; waits for one."""
        return self._commands.get()

    def shut(self) -> None:
        """Run the commands that remain. From now on, a late command runs where it is posted."""
        self.is_shut = True
        self._run_rest()

    def _run_rest(self) -> None:
        """Without waiting: the thread that holds the lock looks again after giving it back."""
        while not self._commands.empty() and self._ending.acquire(blocking=False):
            try:
                while not self._commands.empty():
                    with Foreign():  # calls that come now are told that it is over
                        self._commands.get_nowait()()
            finally:
                self._ending.release()


def _nothing() -> None:
    pass
