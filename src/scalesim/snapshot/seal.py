"""A sealed file: a header that names format and version, a body, and a digest over both.

::

    8 bytes: magic | 4: version | 4: zero | 8: length of the body | 16: xxh3-128 | body

The digest is over all other bytes.
"""

from __future__ import annotations

import struct

import xxhash

from scalesim.errors import SnapshotError

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


def _digest(head: bytes, body: bytes) -> bytes:
    state = xxhash.xxh3_128(head)
    state.update(body)
    return state.digest()
