"""A folder as the store of snapshots.

A file written whole is written under another name, brought to the disk, and only then given its
name: who finds the name finds the whole. The file ``lock`` is held by who writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from scalesim.errors import SnapshotError
from scalesim.regular_file import open_regular

try:
    import fcntl
except ImportError:  # no POSIX: one writer at a time is left to the user
    fcntl = None  # type: ignore[assignment]


class Folder:
    """The folder ``path``, which the first writer makes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder, and hold its lock in the block. Raises ``SnapshotError`` where it cannot
        be made, or another process holds it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise SnapshotError(f"{self.path} cannot be written to: {error}") from error
        try:
            if fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise SnapshotError(
                        f"another engine writes into {self.path}, or has its disk there; give each "
                        "a folder of its own"
                    ) from error
                except OSError as error:
                    raise SnapshotError(f"{self.path} cannot be locked: {error}") from error
            yield
        finally:
            if fcntl is not None:  # a child that was forked meanwhile has the file open as well
                fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)

    def names(self) -> list[str]:
        """The names of the files; none where there is no folder. Raises ``SnapshotError``."""
        try:
            return os.listdir(self.path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SnapshotError(f"{self.path} cannot be read: {error}") from error

    def read(self, name: str) -> bytes:
        """The content of a file. Raises ``SnapshotError``."""
        with open_regular(self.path / name, SnapshotError) as file:
            try:
                return file.read()
            except OSError as error:
                raise SnapshotError(f"{self.path / name} cannot be read: {error}") from error

    def open(self, name: str) -> FolderFile:
        """A file to read anywhere. Raises ``SnapshotError``."""
        return FolderFile(self.path / name)

    def write(self, name: str, content: bytes) -> None:
        """Make a file whole or not at all, and have it on the disk on return. Raises
        ``OSError``."""
        part = self.path / f"{name}.part"
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.path / name)
        _sync(self.path)

    def create(self, name: str) -> NewFolderFile:
        """A file to write from front to back. Raises ``OSError``."""
        return NewFolderFile(self.path / name)

    def remove(self, names: Sequence[str]) -> None:
        """Remove files, of which some may be gone. Raises ``OSError``."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)


class FolderFile:
    """The file ``path``, open. Raises ``SnapshotError`` for what is no regular file."""

    def __init__(self, path: Path) -> None:
        self._file = open_regular(path, SnapshotError)

    def read(self, offset: int, count: int) -> bytes:
        """The bytes from ``offset`` on; fewer than ``count`` at the end. Raises ``OSError``."""
        self._file.seek(offset)
        return self._file.read(count)

    def close(self) -> None:
        self._file.close()


class NewFolderFile:
    """The new file ``path``. Raises ``OSError``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "wb")  # noqa: SIM115  finish and abandon close it

    def write(self, data: memoryview) -> None:
        self._file.write(data)

    def finish(self) -> None:
        """Have content and name on the disk on return."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        _sync(self._path.parent)

    def abandon(self) -> None:
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._path.unlink()


def _sync(folder: Path) -> None:
    """Have the names in ``folder`` on the disk on return."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # a system on which folders cannot be synced
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
