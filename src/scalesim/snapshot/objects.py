"""A prefix of an object store as the store of snapshots.

An object is there whole or not at all, once its writing has ended. That takes the place of a
folder's renames and syncs: pages are objects before the manifest that refers to them is one. There
are no locks: one engine at a time writes under a prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

from scalesim.errors import SnapshotError
from scalesim.object_store import ObjectStore, call

READ_BYTES = 16 << 20
"""Read at once: pages lie in the order in which they are asked for, or nearly."""


class Objects:
    """The objects under ``url``. Raises ``SnapshotError`` where there is no client for it."""

    def __init__(self, url: str) -> None:
        try:
            self._store = ObjectStore(url)
        except OSError as error:
            raise SnapshotError(
                f"path={url!r} is no place for a snapshot ({error}); give another one, or what it "
                "needs, as a package (pip install 'scalesim-runtime[remote]' for S3)"
            ) from error

    def __str__(self) -> str:
        return self._store.url

    def held(self) -> AbstractContextManager[None]:
        """Nothing: a store has no locks."""
        return nullcontext()

    def names(self) -> list[str]:
        """The names of the objects. Raises ``SnapshotError``."""
        try:
            return self._store.names()
        except OSError as error:
            raise SnapshotError(f"{self} cannot be read: {error}") from error

    def read(self, name: str) -> bytes:
        """The content of an object. Raises ``SnapshotError`` if it is gone, and ``OSError`` where
        the store does not answer."""
        try:
            content = self._store.read(self._store.path(name))
        except FileNotFoundError as error:
            raise SnapshotError(f"{self}: {name} is missing") from error
        return content

    def open(self, name: str) -> StoredFile:
        """An object to read anywhere; whether it is there shows when it is read."""
        return StoredFile(self._store, self._store.path(name))

    def write(self, name: str, content: bytes) -> None:
        """Make an object. Raises ``OSError``."""
        self._store.ask("pipe_file", self._store.path(name), content)

    def create(self, name: str) -> NewStoredFile:
        """An object to write from front to back. Raises ``OSError``."""
        return NewStoredFile(self._store, name)

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects. Raises ``OSError``."""
        self._store.remove(names)


class StoredFile:
    """The object at ``path`` of ``store``, read ``READ_BYTES`` at once. A store that does not
    answer is not asked for each page again: after an error, nothing more is read."""

    def __init__(self, store: ObjectStore, path: str) -> None:
        self._store, self._path = store, path
        self._first, self._content = 0, b""
        self._error: OSError | None = None

    def read(self, offset: int, count: int) -> bytes:
        """The bytes from ``offset`` on; fewer than ``count`` at the end. Raises ``OSError``."""
        if not self._first <= offset <= offset + count <= self._first + len(self._content):
            self._fetch(offset, offset + max(count, READ_BYTES))
        return self._content[offset - self._first :][:count]

    def _fetch(self, first: int, end: int) -> None:
        if self._error is not None:
            raise self._error
        try:
            self._content = self._store.read(self._path, start=first, end=end)
        except OSError as error:
            self._error = error
            raise
        self._first = first

    def close(self) -> None:
        self._content = b""


class NewStoredFile:
    """The object ``name`` of ``store``, sent in parts where its client can do that. Raises
    ``OSError``."""

    def __init__(self, store: ObjectStore, name: str) -> None:
        self._store, self._name = store, name
        self._file = store.ask("open", store.path(name), "wb")

    def write(self, data: memoryview) -> None:
        call(self._file.write, data)

    def finish(self) -> None:
        """Have the object there on return."""
        call(self._file.close)

    def abandon(self) -> None:
        """Nothing refers to the object. What is left of it goes with the next snapshot."""
        with suppress(OSError):
            call(self._file.close)
            self._store.remove([self._name])
