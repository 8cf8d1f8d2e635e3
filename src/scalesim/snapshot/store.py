"""The snapshot store protocol: where snapshots lie. ``Folder`` keeps their files in a folder,
``Objects`` the same files in an object store."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from scalesim.checks import place_of
from scalesim.errors import SnapshotError
from scalesim.snapshot.folder import Folder
from scalesim.snapshot.objects import Objects


class NewFile(Protocol):
    """A file that is being written, from front to back. Raises ``OSError``."""

    def write(self, data: memoryview) -> None: ...

    def finish(self) -> None:
        """On return the file is there for good, name and content."""
        ...

    def abandon(self) -> None:
        """Remove what was written. Raises nothing."""
        ...


class OpenFile(Protocol):
    """A file that can be read anywhere. Raises ``OSError``."""

    def read(self, offset: int, count: int) -> bytes:
        """The bytes from ``offset`` on; fewer than ``count`` at the end of the file."""
        ...

    def close(self) -> None: ...


class SnapshotStore(Protocol):
    """Files by name; ``str`` gives what the user calls the store. What writes raises ``OSError``,
    what reads ``SnapshotError`` for a
    file that is not there, or no file."""

    def held(self) -> AbstractContextManager[None]:
        """Make the store, and be its only writer in the block, as far as it can tell. Raises
        ``SnapshotError``."""
        ...

    def names(self) -> list[str]:
        """None where the store was not made yet. Raises ``SnapshotError``."""
        ...

    def read(self, name: str) -> bytes:
        """The whole content. Raises ``OSError`` as well, where a later try may find it."""
        ...

    def open(self, name: str) -> OpenFile: ...

    def write(self, name: str, content: bytes) -> None:
        """Make a file whole or not at all; on return it is there for good."""
        ...

    def create(self, name: str) -> NewFile: ...

    def remove(self, names: Sequence[str]) -> None: ...


def store_at(path: object) -> SnapshotStore:
    """The store that a user calls ``path``: a path, or a URL as fsspec understands it. Raises
    ``SnapshotError``."""
    place = place_of("path", path, SnapshotError)
    return Objects(place) if isinstance(place, str) else Folder(place)
