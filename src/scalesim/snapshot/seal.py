"""A sealed file: a header that names format and version, a body, and a digest over both.

::

    8 bytes: magic | 4: version | 4: zero | 8: length of the body | 16: xxh3-128 | body

The digest is over all other bytes. A sealed file is written whole under another name, brought to
the disk, and only then given its name: who finds the name finds the whole.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import xxhash

from scalesim.errors import SnapshotError
from scalesim.regular_file import open_regular

MAGIC = b"SCALESIM"
VERSION = 1
_HEAD = struct.Struct("<8sIIQ")
_DIGEST_BYTES = 16


def seal(body: bytes) -> bytes:
    """The bytes of a sealed file with this body."""
    head = _HEAD.pack(MAGIC, VERSION, 0, len(body))
    return head + _digest(head, body) + body


def unseal(raw: bytes, where: str) -> bytes:
    """The body of a sealed file. Raises ``SnapshotError``, naming ``where``, for any other bytes:
    also where one bit differs, or the end is missing."""
    start = _HEAD.size + _DIGEST_BYTES
    if len(raw) < start:
        raise SnapshotError(f"{where} has {len(raw)} bytes, and its header {start}: it is cut off")
    magic, version, zero, length = _HEAD.unpack_from(raw)
    if magic != MAGIC:
        raise SnapshotError(f"{where} is no snapshot: it begins with {magic!r}")
    body = raw[start:]
    if raw[_HEAD.size : start] != _digest(raw[: _HEAD.size], body) or length != len(body) or zero:
        raise SnapshotError(f"{where} is damaged: its digest is another, or its end is missing")
    if version != VERSION:
        raise SnapshotError(
            f"{where} has format version {version}; this release reads version {VERSION}"
        )
    return body


def write_sealed(path: Path, body: bytes) -> None:
    """Make the file ``path`` whole or not at all, and have it on the disk on return."""
    unfinished = path.with_name(path.name + ".part")
    with open(unfinished, "wb") as file:
        file.write(seal(body))
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    sync_folder(path.parent)


def read_sealed(path: Path) -> bytes:
    """The body of the sealed file ``path``. Raises ``SnapshotError``."""
    with open_regular(path, SnapshotError) as file:
        try:
            raw = file.read()
        except OSError as error:
            raise SnapshotError(f"{path} cannot be read: {error}") from error
    return unseal(raw, str(path))


def sync_folder(folder: Path) -> None:
    """Have the names in ``folder`` on the disk on return."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # a system on which folders cannot be synced
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _digest(head: bytes, body: bytes) -> bytes:
    state = xxhash.xxh3_128(head)
    state.update(body)
    return state.digest()
