"""Opens what must be a plain file. A pipe would be waited for, and a device or a folder read for
ever, by whoever opens a path that a stranger chose."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from scalesim.errors import ScaleSimError

# Not blocking: what was a file when it was looked at may be a pipe when it is opened.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular(path: Path, error: type[ScaleSimError]) -> None:
    """Raise ``error`` for what is not there or is no regular file, links followed. The file is not
    opened: opening a pipe would be seen at its other end."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise error(f"{path} is missing") from None
    except (OSError, ValueError) as cause:
        raise _unreadable(path, cause, error) from None
    _check_kind(path, found, error)


def open_regular(path: Path, error: type[ScaleSimError]) -> BinaryIO:
    """``path`` opened to read bytes. Raises ``error`` for what is not there, may not be read, or is
    no regular file; opening never waits."""
    check_regular(path, error)
    try:
        number = os.open(path, _FLAGS)
    except OSError as cause:
        raise _unreadable(path, cause, error) from None
    try:
        _check_kind(path, os.fstat(number), error)
    except ScaleSimError:
        os.close(number)
        raise
    return open(number, "rb")


def _check_kind(path: Path, found: os.stat_result, error: type[ScaleSimError]) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise error(f"{path} is {kind}; only regular files are read")


def _unreadable(path: Path, cause: Exception, error: type[ScaleSimError]) -> ScaleSimError:
    """``cause`` is an ``OSError``, or the ``ValueError`` of a name that no file can have."""
    reason = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
    return error(f"{path!s:.300} cannot be read: {reason:.200}")
