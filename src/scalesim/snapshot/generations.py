"""Generations of snapshots in a store, the newest of which counts.

::

    snapshot-00000007        the manifest of generation 7: the state, and where each page lies
    snapshot-00000006        kept, should the newer one be damaged
    pages-00000005           pages that were first written by generation 5
    pages-00000007

A manifest is written last, when its pages are there for good: killed at any moment, the store holds
the generation before or the new one, whole. All names are numbers: nothing that a user calls an
agent becomes a path. Numbers only grow, so that a file is never taken for an older one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from scalesim.errors import SnapshotError
from scalesim.snapshot.page_file import PageFileReader, PageFileWriter
from scalesim.snapshot.seal import seal, unseal
from scalesim.snapshot.store import SnapshotStore
from scalesim.snapshot.values import decode, encode

KEPT = 2
"""Generations that are kept."""
_NAME = re.compile(r"(snapshot|pages)-(\d{8,18})(\.part)?")


class Generation(NamedTuple):
    """A manifest as it was read: its number, what it says, and what was wrong with newer ones."""

    number: int
    manifest: dict[str, Any]
    damaged: tuple[str, ...]


class Generations:
    """The snapshots in ``store``."""

    def __init__(self, store: SnapshotStore) -> None:
        self.store = store

    # -- reading ------------------------------------------------------------------------------

    def newest(self) -> Generation:
        """The newest generation that is sound. Raises ``SnapshotError`` if there is none, with
        what is wrong with each; and where the store does not answer, since an older generation is
        no answer to that. Another engine may write there meanwhile."""
        damaged: list[str] = []
        numbers = self._numbers("snapshot")
        for number in sorted(numbers, reverse=True):
            try:
                return Generation(number, self.read(number), tuple(damaged))
            except SnapshotError as error:
                damaged.append(str(error))
            except OSError as error:
                raise SnapshotError(f"{self.store} cannot be read: {error}") from error
        if self.newest_number() > max(numbers, default=0):  # these were removed since
            return self.newest()
        why = "; ".join(damaged) or "it holds no manifest (snapshot-…)"
        raise SnapshotError(f"{self.store} has no snapshot that can be restored: {why}")

    def newest_number(self) -> int:
        """The number of the newest generation, sound or not; 0 for none."""
        return max(self._numbers("snapshot"), default=0)

    def read(self, number: int) -> dict[str, Any]:
        """What the manifest of generation ``number`` says. Raises ``SnapshotError``, and
        ``OSError`` where the store does not answer."""
        name = _name_of("snapshot", number)
        where = f"{self.store}: {name}"
        manifest = decode(unseal(self.store.read(name), where))
        if not isinstance(manifest, dict) or manifest.get("generation") != number:
            raise SnapshotError(f"{where} is not the manifest of generation {number}")
        return manifest

    def page_files(self) -> set[int]:
        """The numbers of the page files that are there. Raises ``SnapshotError``."""
        return set(self._numbers("pages"))

    def open_pages(self, number: int, page_bytes: int) -> PageFileReader:
        """A reader of page file ``number``. Raises ``SnapshotError`` if it is not there."""
        return PageFileReader(self.store.open(_name_of("pages", number)), page_bytes)

    # -- writing ------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[int]:
        """Hold the store to write a generation; gives its number. Raises ``SnapshotError`` where
        the store cannot be made, or another process writes there."""
        with self.store.held():
            yield 1 + max([*self._numbers("snapshot"), *self._numbers("pages")], default=0)

    def new_pages(self, number: int, page_bytes: int) -> PageFileWriter:
        """A writer of the page file of generation ``number``. Raises ``OSError``."""
        return PageFileWriter(self.store.create(_name_of("pages", number)), number, page_bytes)

    def commit(self, number: int, manifest: Mapping[str, Any]) -> None:
        """Make ``manifest`` generation ``number``. Its pages have been finished. Raises
        ``OSError``."""
        sealed = seal(encode({**manifest, "generation": number}))
        self.store.write(_name_of("snapshot", number), sealed)

    def clean(self, page_files: Mapping[int, set[int]]) -> None:
        """Remove the generations that are no longer kept, and page files to which none refers.
        ``page_files``: by kept generation, the numbers of the files that it refers to."""
        kept = sorted(page_files, reverse=True)[:KEPT]
        needed = set().union(*(page_files[number] for number in kept)) if kept else set()
        unused = []
        for name in self.store.names():
            if (match := _NAME.fullmatch(name)) is not None:
                kind, number, part = match[1], int(match[2]), match[3]
                if part or number not in (kept if kind == "snapshot" else needed):
                    unused.append(name)
        self.store.remove(unused)

    def _numbers(self, kind: str) -> list[int]:
        found = [_NAME.fullmatch(name) for name in self.store.names()]
        return [int(match[2]) for match in found if match and match[1] == kind and not match[3]]


def _name_of(kind: str, number: int) -> str:
    return f"{kind}-{number:08d}"
