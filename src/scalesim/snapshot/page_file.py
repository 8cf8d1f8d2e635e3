"""Page files: pages of KV cache, one behind the other, each found by its file and place.

A page file is written once and never changed. Its first ``HEADER_BYTES`` are a sealed header; page
``i`` lies at ``HEADER_BYTES + i * page_bytes``. The checksum of a page (xxh3-64) is kept in the
manifests that refer to the page: a page that does not match is a miss, and is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

import numpy as np
import xxhash

from scalesim.core import Bytes2D
from scalesim.snapshot.seal import seal
from scalesim.snapshot.store import NewFile, OpenFile
from scalesim.snapshot.values import encode

HEADER_BYTES = 4096


class PagePlace(NamedTuple):
    """Where a page lies: the number of the file, its row in it, and its checksum."""

    file: int
    row: int
    checksum: int


class PageFileWriter:
    """Writes the page file ``number`` to ``file``. Nothing refers to the pages before ``finish``
    has returned, and a manifest has been written after that. Raises ``OSError``."""

    def __init__(self, file: NewFile, number: int, page_bytes: int) -> None:
        self.number, self.num_pages = number, 0
        self._file, self._page_bytes = file, page_bytes
        header = seal(encode({"kind": "pages", "number": number, "page_bytes": page_bytes}))
        self._file.write(memoryview(header.ljust(HEADER_BYTES, b"\0")))

    def add(self, rows: Bytes2D) -> list[PagePlace]:
        """Append pages, uint8 ``[n, page_bytes]``; returns where they lie."""
        assert rows.shape[1] == self._page_bytes, (rows.shape, self._page_bytes)
        rows = np.ascontiguousarray(rows)
        self._file.write(rows.reshape(-1).data)
        first, self.num_pages = self.num_pages, self.num_pages + len(rows)
        return [
            PagePlace(self.number, first + index, xxhash.xxh3_64_intdigest(row.data))
            for index, row in enumerate(rows)
        ]

    def finish(self) -> None:
        """Have all pages there for good on return."""
        self._file.finish()

    def abandon(self) -> None:
        """Remove the file: nothing will refer to it."""
        self._file.abandon()


class PageFileReader:
    """Reads the pages of ``file``, which it closes. What cannot be read, or does not match, is left
    out. A context manager."""

    def __init__(self, file: OpenFile, page_bytes: int) -> None:
        self._file, self._page_bytes = file, page_bytes

    def read(self, places: Sequence[PagePlace]) -> tuple[Bytes2D, list[bool]]:
        """The pages of ``places``, uint8 ``[n, page_bytes]``, and which of them are sound. A place
        that is not in the file is not sound."""
        rows = np.zeros((len(places), self._page_bytes), np.uint8)
        return rows, [self._read(place, rows[at]) for at, place in enumerate(places)]

    def _read(self, place: PagePlace, row: Bytes2D) -> bool:
        try:
            found = self._file.read(HEADER_BYTES + place.row * self._page_bytes, len(row))
        except (OSError, ValueError):
            return False
        if len(found) != len(row) or xxhash.xxh3_64_intdigest(found) != place.checksum:
            return False
        row[:] = np.frombuffer(found, np.uint8)
        return True

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
