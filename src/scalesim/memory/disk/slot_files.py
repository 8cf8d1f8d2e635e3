"""Slot files: the pages of the disk tier, in a few large files under one folder.

A slot holds one page, padded to whole disk blocks. Slots are grouped into files, each of which is
allocated at full size when one of its slots is first written, so that a write never makes a file
grow. Consecutive slots are read and written as one piece. A checksum of each slot is kept in memory
and compared when the slot is read: damaged or truncated content is an error, never another text.

The files hold nothing after the process: they are removed when the files are closed, and what a
killed process left is removed by the next one. One process uses a folder at a time (``flock``).
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from scalesim.checks import shown
from scalesim.core import Bytes2D
from scalesim.errors import ConfigError
from scalesim.memory.disk.slot_store import BadSlotError, checksum
from scalesim.memory.pools.page_pool import runs
from scalesim.memory.pools.storage import allocate_pages

BLOCK_BYTES = 4096
"""Offsets, lengths and buffers of ``O_DIRECT`` are multiples of this on the disks in use."""
FILE_BYTES = 1 << 30
PIECE_BYTES = 16 << 20  # the most that one read or write moves; also the size of each buffer
_NAME = "slots-{:05d}"
_NAMES = re.compile(r"slots-\d{5}")


class SlotFiles:
    """``num_slots`` slots of ``page_bytes`` under ``folder``, which is made if it is missing. One
    thread may read while another one writes.

    Page caches are bypassed (``O_DIRECT``) where the file system allows it: host memory is the
    cache. Raises ``ConfigError`` if the folder cannot be used, or another process uses it.
    """

    retry_s = float("inf")  # a disk that failed once is not trusted again

    def __init__(self, folder: Path, page_bytes: int, num_slots: int) -> None:
        self.folder, self.page_bytes, self.num_slots = folder, page_bytes, num_slots
        self.slot_bytes = slot_bytes(page_bytes)
        self._per_file = max(1, FILE_BYTES // self.slot_bytes)
        self._lock = _lock(folder)  # and what a killed process left is gone
        self._fds: dict[int, int] = {}  # by number of the file
        self._sums = np.zeros(num_slots, np.uint64)
        rows = max(1, PIECE_BYTES // self.slot_bytes)
        self._reading = allocate_pages(rows, self.slot_bytes)
        self._writing = allocate_pages(rows, self.slot_bytes)

    @property
    def where(self) -> str:
        return str(self.folder)

    @property
    def is_direct(self) -> bool:
        """Whether the files bypass the page cache; False before anything was written."""
        direct = getattr(os, "O_DIRECT", 0)
        return any(fcntl.fcntl(fd, fcntl.F_GETFL) & direct for fd in self._fds.values())

    def write(self, slots: Sequence[int], pool: Bytes2D, pages: Sequence[int]) -> None:
        """Write ``pages`` of ``pool`` ``[num_pages, page_bytes]`` to ``slots``, pairwise. Raises
        ``OSError``."""
        for start, first, count in self._pieces(slots):
            rows = self._writing[:count]
            rows[:, : self.page_bytes] = pool[list(pages[start : start + count])]
            for index in range(count):
                self._sums[first + index] = self._sum(rows, index)
            fd, offset = self._file(first // self._per_file), self._offset(first)
            done = os.pwrite(fd, rows.reshape(-1).data, offset)
            if done != rows.nbytes:
                raise OSError(f"{self.folder}: {done} of {rows.nbytes} bytes were written")

    def read(self, slots: Sequence[int], pool: Bytes2D, pages: Sequence[int]) -> None:
        """Read ``slots`` into ``pages`` of ``pool`` ``[num_pages, page_bytes]``, pairwise. Raises
        ``BadSlotError``, and ``OSError`` where the system cannot read."""
        for start, first, count in self._pieces(slots):
            rows = self._read_piece(first, self._reading[:count])
            for index in range(count):
                if self._sum(rows, index) != self._sums[first + index]:
                    raise BadSlotError(
                        f"{self.folder}: slot {first + index} does not have its checksum"
                    )
            pool[list(pages[start : start + count])] = rows[:, : self.page_bytes]

    def checksums(self, slots: Sequence[int]) -> list[int]:
        """The checksums of what was last written to ``slots``."""
        found: list[int] = self._sums[list(slots)].tolist()
        return found

    def copy(self, slots: Sequence[int], checksums: Sequence[int]) -> tuple[Bytes2D, list[bool]]:
        """What is in ``slots`` now, uint8 ``[n, page_bytes]``, and which of it can be read and has
        the checksum asked for. On any thread."""
        found = np.zeros((len(slots), self.page_bytes), np.uint8)
        sound = [False] * len(slots)
        buffer = allocate_pages(min(len(slots), len(self._reading)), self.slot_bytes)
        for start, first, count in self._pieces(slots):
            with suppress(OSError, BadSlotError, KeyError):  # the files may be closed meanwhile
                rows = self._read_piece(first, buffer[:count])
                found[start : start + count] = rows[:, : self.page_bytes]
                for index in range(count):
                    sound[start + index] = self._sum(rows, index) == checksums[start + index]
        return found, sound

    def close(self) -> None:
        """Remove the files and let another process use the folder."""
        for number, fd in self._fds.items():
            os.close(fd)
            with suppress(OSError):
                (self.folder / _NAME.format(number)).unlink()
        self._fds.clear()
        fcntl.flock(self._lock, fcntl.LOCK_UN)  # a forked child may have the file open as well
        os.close(self._lock)

    def _pieces(self, slots: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """(index in ``slots``, first slot, count) of each piece: consecutive slots of one file that
        fit a buffer."""
        start, most = 0, len(self._reading)
        for first, end in runs(slots):
            while first < end:
                count = min(end - first, most, self._per_file - first % self._per_file)
                yield start, first, count
                start, first = start + count, first + count

    def _read_piece(self, first: int, rows: Bytes2D) -> Bytes2D:
        """Read the slots from ``first`` on into ``rows``, ``[n, slot_bytes]``. Returns ``rows``.
        Raises ``BadSlotError`` for the end of the file, and ``OSError``."""
        fd = self._fds[first // self._per_file]
        done = os.preadv(fd, [rows.reshape(-1).data], self._offset(first))
        if done != rows.nbytes:
            raise BadSlotError(
                f"{self.folder}: slots {first} to {first + len(rows) - 1} are truncated: "
                f"{done} of {rows.nbytes} bytes"
            )
        return rows

    def _sum(self, rows: Bytes2D, index: int) -> int:
        return checksum(rows[index, : self.page_bytes].data)

    def _offset(self, slot: int) -> int:
        return slot % self._per_file * self.slot_bytes

    def _file(self, number: int) -> int:
        """The file of this number, open; allocated when it is first asked for."""
        fd = self._fds.get(number)
        if fd is None:
            path = self.folder / _NAME.format(number)
            fd = _open(path)
            num_slots = min(self._per_file, self.num_slots - number * self._per_file)
            try:
                os.posix_fallocate(fd, 0, num_slots * self.slot_bytes)
            except OSError:
                os.close(fd)
                with suppress(OSError):
                    path.unlink()
                raise
            self._fds[number] = fd
        return fd


def slot_bytes(page_bytes: int) -> int:
    """Bytes on the disk of a page of ``page_bytes``."""
    return -(-page_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        return os.open(path, flags | getattr(os, "O_DIRECT", 0), 0o600)
    except OSError:  # a file system without it
        return os.open(path, flags, 0o600)


def _lock(folder: Path) -> int:
    """Make the folder, lock it for this process, and empty it of slot files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(folder, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in filter(_NAMES.fullmatch, os.listdir(folder)):
            (folder / name).unlink()
    except OSError as error:
        os.close(fd)
        if isinstance(error, BlockingIOError):
            raise ConfigError(
                f"disk={shown(str(folder))} is used by another engine, or for a snapshot; give "
                "each a folder of its own"
            ) from error
        raise _unusable(folder, error) from error
    return fd


def _unusable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"disk={shown(str(folder))} is no folder that can be written to ({error!s:.200}); give "
        "another one"
    )
