"""Other people's code: hooks, sources, observers, parts, log handlers, and values of any class.

The rule is kept here: whatever such code raises, of any class, is a value that its caller looks
at, so it ends what it belongs to and nothing else. ``SystemExit`` from a mask hook is that
request's error; it is nobody's wish to end the program. Ctrl-C is the one exception: it is the
caller's, who may be running such code while it strikes (``interrupts``).
"""

from __future__ import annotations

import logging
from types import TracebackType

from scalesim.checks import shown
from scalesim.errors import InternalError
from scalesim.interrupts import is_ctrl_c


class Foreign:
    """``with Foreign() as raised: hook(...)``; then ``raised.error`` is what came of it."""

    __slots__ = ("error",)

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> Foreign:
        return self

    @property
    def exception(self) -> Exception | None:
        """``error`` as something that may be raised to who asked: what only means something where
        it was raised (``SystemExit``, a task's ``CancelledError``) as ``InternalError``."""
        if self.error is None or isinstance(self.error, Exception):
            return self.error
        error = InternalError(f"a callback of this request raised {shown(self.error)}")
        error.__cause__ = self.error
        return error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if is_ctrl_c(kind):
            return False
        self.error = error
        return True


def words_of(error: BaseException | None) -> str:
    """``repr(error)``, cut at 2 000 characters; its type where its own ``repr`` fails."""
    with Foreign():
        return f"{error!r:.2000}"
    return shown(error)


def report(
    log: logging.Logger, message: str, *values: object, error: BaseException | None = None
) -> None:
    """``log.error`` with the traceback of ``error``, where a handler that raises must not matter
    either."""
    with Foreign():
        log.error(message, *values, exc_info=error)
