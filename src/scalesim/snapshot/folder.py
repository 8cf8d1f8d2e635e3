"""A folder of snapshots: generations, the newest of which counts.

::

    snapshot-00000007        the manifest of generation 7: the state, and where each page lies
    snapshot-00000006        kept, should the newer one be damaged
    pages-00000005           pages that were first written by generation 5
    pages-00000007
    lock                     held by who writes

A manifest is written last, when its pages are on the disk: killed at any moment, the folder holds
the generation before or the new one, whole. All names are numbers: nothing that a user calls an
agent becomes a path. Numbers only grow, so that a file is never taken for an older one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from scalesim.errors import SnapshotError
from scalesim.snapshot.page_file import PageFileWriter
from scalesim.snapshot.seal import read_sealed, sync_folder, write_sealed
from scalesim.snapshot.values import decode, encode

try:
    import fcntl
except ImportError:  # no POSIX: one writer at a time is left to the user
    fcntl = None  # type: ignore[assignment]

KEPT = 2
"""Generations that are kept."""
_NAME = re.compile(r"(snapshot|pages)-(\d{8,18})(\.part)?")


class Generation(NamedTuple):
    """A manifest as it was read: its number, what it says, and what was wrong with newer ones."""

    number: int
    manifest: dict[str, Any]
    damaged: tuple[str, ...]


class SnapshotFolder:
    """The snapshots in the folder ``path``, which is made by the first that is written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def manifest_path(self, number: int) -> Path:
        return self.path / f"snapshot-{number:08d}"

    def pages_path(self, number: int) -> Path:
        return self.path / f"pages-{number:08d}"

    # -- reading ------------------------------------------------------------------------------

    def newest(self) -> Generation:
        """The newest generation that is sound. Raises ``SnapshotError`` if there is none, with
        what is wrong with each."""
        damaged: list[str] = []
        for number in sorted(self._numbers("snapshot"), reverse=True):
            try:
                return Generation(number, self.read(number), tuple(damaged))
            except SnapshotError as error:
                damaged.append(str(error))
        why = "; ".join(damaged) or "it holds no manifest (snapshot-…)"
        raise SnapshotError(f"{self.path} has no snapshot that can be restored: {why}")

    def newest_number(self) -> int:
        """The number of the newest generation, sound or not; 0 for none."""
        return max(self._numbers("snapshot"), default=0)

    def read(self, number: int) -> dict[str, Any]:
        """What the manifest of generation ``number`` says. Raises ``SnapshotError``."""
        path = self.manifest_path(number)
        manifest = decode(read_sealed(path))
        if not isinstance(manifest, dict) or manifest.get("generation") != number:
            raise SnapshotError(f"{path} is not the manifest of generation {number}")
        return manifest

    # -- writing ------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[int]:
        """Hold the folder to write a generation; gives its number. Raises ``SnapshotError`` where
        the folder cannot be made, or another process writes into it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise SnapshotError(f"{self.path} cannot be written to: {error}") from error
        try:
            if fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    raise SnapshotError(
                        f"another engine writes snapshots into {self.path}; give each its folder"
                    ) from error
            yield 1 + max([*self._numbers("snapshot"), *self._numbers("pages")], default=0)
        finally:
            os.close(lock)  # gives the lock back

    def new_pages(self, number: int, page_bytes: int) -> PageFileWriter:
        """A writer of the page file of generation ``number``."""
        return PageFileWriter(self.pages_path(number), number, page_bytes)

    def commit(self, number: int, manifest: Mapping[str, Any]) -> None:
        """Make ``manifest`` generation ``number``. Its pages have been finished."""
        sync_folder(self.path)  # the name of the page file, before anything refers to it
        write_sealed(self.manifest_path(number), encode({**manifest, "generation": number}))

    def clean(self, page_files: Mapping[int, set[int]]) -> None:
        """Remove the generations that are no longer kept, and page files to which none refers.
        ``page_files``: by kept generation, the numbers of the files that it refers to."""
        kept = sorted(page_files, reverse=True)[:KEPT]
        needed = set().union(*(page_files[number] for number in kept)) if kept else set()
        with suppress(FileNotFoundError):
            for found in list(os.scandir(self.path)):
                match = _NAME.fullmatch(found.name)
                if match is None:
                    continue
                kind, number, part = match[1], int(match[2]), match[3]
                if part or number not in (kept if kind == "snapshot" else needed):
                    Path(found.path).unlink(missing_ok=True)

    def _numbers(self, kind: str) -> list[int]:
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SnapshotError(f"{self.path} cannot be read: {error}") from error
        found = [_NAME.fullmatch(name) for name in names]
        return [int(match[2]) for match in found if match and match[1] == kind and not match[3]]
