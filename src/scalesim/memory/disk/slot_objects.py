"""Slot objects: the pages of the disk tier in an object store, one object for each page.

An object is written whole, read whole and replaced whole, which is what object stores do without a
moment at which it is torn; the store's own client moves many of them at once. A checksum of each
slot is kept in memory and compared when the slot is read, so an object that is damaged, or older
than what was written last, is a miss.

The objects hold nothing after the process. They are removed when the store is closed, and what a
killed process left is removed by the next one. There are no locks: two engines that are given one
prefix remove and replace each other's pages, which costs both what these pages were worth, and
changes no text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from scalesim.core import Bytes2D
from scalesim.errors import ConfigError
from scalesim.memory.disk.slot_store import BadSlotError, checksum
from scalesim.object_store import ObjectStore, as_os_error

_NAME = re.compile(r"slots-\d{10}")


class SlotObjects:
    """``num_slots`` slots of ``page_bytes`` under ``url``, as fsspec understands it
    (``"s3://bucket/prefix"``). Raises ``ConfigError`` if no object can be written there."""

    retry_s = 60.0  # a network comes back

    def __init__(self, url: str, page_bytes: int, num_slots: int) -> None:
        self.where, self.page_bytes = url, page_bytes
        self._sums = np.zeros(num_slots, np.uint64)
        self._written: set[int] = set()
        try:
            self._store = ObjectStore(url)
            self._store.ask("pipe_file", self._path(0), b"")
            self._store.remove(self._left())
        except OSError as error:
            raise ConfigError(
                f"disk={url!r} is no place that objects can be written to ({error}); give another "
                "one, or what it needs: a package, a bucket, credentials"
            ) from error

    def write(self, slots: Sequence[int], pool: Bytes2D, pages: Sequence[int]) -> None:
        """Write ``pages`` of ``pool`` ``[num_pages, page_bytes]`` to ``slots``, pairwise. Raises
        ``OSError``."""
        rows = [pool[page].tobytes() for page in pages]
        self._sums[list(slots)] = [checksum(row) for row in rows]
        self._written.update(slots)
        self._store.ask("pipe", dict(zip(map(self._path, slots), rows, strict=True)))

    def read(self, slots: Sequence[int], pool: Bytes2D, pages: Sequence[int]) -> None:
        """Read ``slots`` into ``pages`` of ``pool`` ``[num_pages, page_bytes]``, pairwise. Raises
        ``BadSlotError``, also for an object that is gone, and ``OSError`` where the store cannot
        be read."""
        found = self._read(slots)
        for slot, row in zip(slots, found, strict=True):
            if isinstance(row, FileNotFoundError):
                raise BadSlotError(f"{self.where}: slot {slot} is gone") from row
            if isinstance(row, BaseException):
                raise as_os_error(row) from row
            if len(row) != self.page_bytes or checksum(row) != self._sums[slot]:
                raise BadSlotError(f"{self.where}: slot {slot} does not have its checksum")
        pool[list(pages)] = np.frombuffer(b"".join(found), np.uint8).reshape(-1, self.page_bytes)

    def checksums(self, slots: Sequence[int]) -> list[int]:
        """The checksums of what was last written to ``slots``."""
        found: list[int] = self._sums[list(slots)].tolist()
        return found

    def copy(self, slots: Sequence[int], checksums: Sequence[int]) -> tuple[Bytes2D, list[bool]]:
        """What is in ``slots`` now, uint8 ``[n, page_bytes]``, and which of it can be read and has
        the checksum asked for. On any thread."""
        rows = np.zeros((len(slots), self.page_bytes), np.uint8)
        sound = [False] * len(slots)
        with suppress(OSError):
            for index, row in enumerate(self._read(slots)):
                if isinstance(row, bytes) and len(row) == self.page_bytes:
                    rows[index] = np.frombuffer(row, np.uint8)
                    sound[index] = checksum(row) == checksums[index]
        return rows, sound

    def close(self) -> None:
        """Remove the objects, of which some may be gone."""
        written = {_name(slot) for slot in self._written}
        with suppress(OSError):
            self._store.remove([name for name in self._left() if name in written])

    def _path(self, slot: int) -> str:
        return self._store.path(_name(slot))

    def _read(self, slots: Sequence[int]) -> list[Any]:
        """The content of each of ``slots``, or the error of its reading. Raises ``OSError``."""
        paths = [self._path(slot) for slot in slots]
        found: list[Any] = self._store.ask(
            "cat_ranges", paths, 0, self.page_bytes, on_error="return"
        )
        return found

    def _left(self) -> list[str]:
        """The objects under the prefix that have names of slots."""
        return [name for name in self._store.names() if _NAME.fullmatch(name)]


def _name(slot: int) -> str:
    return f"slots-{slot:010d}"
