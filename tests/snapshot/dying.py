"""An object store that stops answering: fsspec's store in memory, after so many calls. And a child
process that lives for a while."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem as Remote


@contextmanager
def living_child() -> Iterator[None]:
    """A child of this process, which has open what the process has open, lives in the block."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)  # until the parent's end of the pipe is closed
        os._exit(0)
    try:
        yield
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(pid, 0)


@contextmanager
def emptied() -> Iterator[None]:
    """The store in memory is the process's: nothing is left in it after the block."""
    try:
        yield
    finally:
        Remote.store.clear()
        Remote.pseudo_dirs[:] = [""]


class Dying:
    """A store that answers ``calls`` calls that write or read, and no more. What is written piece
    by piece is there once it is closed, as in a store that is far away."""

    def __init__(self, calls: int, patch: pytest.MonkeyPatch) -> None:
        self.left = calls
        for name in ("ls", "pipe_file", "cat_file", "rm"):
            patch.setattr(Remote, name, self._around(getattr(Remote, name)))
        opened = Remote.open

        def open_(store: Remote, path: str, mode: str = "rb", **options: Any) -> Any:
            return opened(store, path, mode, **options) if "data" in options else Sent(path)

        patch.setattr(Remote, "open", open_)

    def _around(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def answer(store: Remote, *values: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("no route to the store")  # a class of the client's own
            return method(store, *values, **options)

        return answer


class Sent(BytesIO):
    """The object ``path`` on its way to the store."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            Remote().pipe_file(self._path, content)
