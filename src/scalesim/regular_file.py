"""Opens what must be a plain file. A pipe would be waited for, and a device or a folder read for
ever, by whoever opens a path that a stranger chose."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from scalesim.errors import ScaleSimError

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: Path, error: type[ScaleSimError]) -> BinaryIO:
    """``path`` opened to read bytes. Raises ``error`` for what is not there, may not be read, or is
    no regular file; opening never waits."""
    try:
        number = os.open(path, _FLAGS)
    except (OSError, ValueError) as cause:  # a name with a null in it is a ValueError
        raise error(f"{path} cannot be read: {_reason(cause)}; give a file's path") from None
    kind = os.fstat(number).st_mode
    if stat.S_ISREG(kind):
        return open(number, "rb")
    os.close(number)
    what = "a folder" if stat.S_ISDIR(kind) else "a pipe, socket or device"
    raise error(f"{path} is {what}; give a regular file")


def _reason(cause: Exception) -> str:
    return (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
