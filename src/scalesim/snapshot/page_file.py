"""Page files: pages of KV cache, one behind the other, each found by its file and place.

A page file is written once and never changed. Its first ``HEADER_BYTES`` are a sealed header; page
``i`` lies at ``HEADER_BYTES + i * page_bytes``. The checksum of a page (xxh3-64) is kept in the
manifests that refer to the page: a page that does not match is a miss, and is computed again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

import numpy as np
import xxhash

from scalesim.core import Bytes2D
from scalesim.errors import SnapshotError
from scalesim.regular_file import open_regular
from scalesim.snapshot.seal import seal
from scalesim.snapshot.values import encode

HEADER_BYTES = 4096


class PagePlace(NamedTuple):
    """Where a page lies: the number of the file, its row in it, and its checksum."""

    file: int
    row: int
    checksum: int


class PageFileWriter:
    """Writes the page file ``number`` at ``path``. Nothing refers to the pages before ``finish``
    has returned, and a manifest has been written after that."""

    def __init__(self, path: Path, number: int, page_bytes: int) -> None:
        self.path, self.number, self.num_pages = path, number, 0
        self._page_bytes = page_bytes
        self._file = open(path, "wb")  # noqa: SIM115  finish and abandon close it
        header = seal(encode({"kind": "pages", "number": number, "page_bytes": page_bytes}))
        self._file.write(header.ljust(HEADER_BYTES, b"\0"))

    def add(self, rows: Bytes2D) -> list[PagePlace]:
        """Append pages, uint8 ``[n, page_bytes]``; returns where they lie."""
        assert rows.shape[1] == self._page_bytes, (rows.shape, self._page_bytes)
        rows = np.ascontiguousarray(rows)
        self._file.write(rows.data)
        first, self.num_pages = self.num_pages, self.num_pages + len(rows)
        return [
            PagePlace(self.number, first + index, xxhash.xxh3_64_intdigest(row.data))
            for index, row in enumerate(rows)
        ]

    def finish(self) -> None:
        """Have all pages on the disk on return."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Remove the file: nothing will refer to it."""
        self._file.close()
        self.path.unlink(missing_ok=True)


class PageFileReader:
    """Reads the pages of one file. What cannot be read, or does not match, is left out. A context
    manager; raises ``SnapshotError`` if the file is not there."""

    def __init__(self, path: Path, page_bytes: int) -> None:
        self._page_bytes = page_bytes
        self._file: BinaryIO = open_regular(path, SnapshotError)

    def read(self, places: Sequence[PagePlace]) -> tuple[Bytes2D, list[bool]]:
        """The pages of ``places``, uint8 ``[n, page_bytes]``, and which of them are sound. A place
        that is not in the file is not sound."""
        rows = np.zeros((len(places), self._page_bytes), np.uint8)
        return rows, [self._read(place, rows[at]) for at, place in enumerate(places)]

    def _read(self, place: PagePlace, row: Bytes2D) -> bool:
        try:
            self._file.seek(HEADER_BYTES + place.row * self._page_bytes)
            count = self._file.readinto(row)  # type: ignore[attr-defined]
        except (OSError, ValueError):
            return False
        return count == len(row) and xxhash.xxh3_64_intdigest(row.data) == place.checksum

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> PageFileReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
