"""Values as bytes: plain values and arrays, without pickle.

A document of JSON, in which an array or a byte string stands as a reference, and then the arrays::

    8 bytes: length of the document | document | array | array | …

Nothing here is trusted: a wrong reference is an error of the reader's, and no value is code.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from scalesim.errors import SnapshotError

_KEY = "$array"
_BYTES = "bytes"
_LENGTH = struct.Struct("<Q")
_KINDS = frozenset("biuf")


def encode(value: Any) -> bytes:
    """``value`` as bytes: ``None``, truth values, numbers, text, bytes, lists, dictionaries whose
    keys are text (but ``"$array"``), and NumPy arrays of numbers. Tuples become lists."""
    parts: list[bytes] = []

    def reference(found: Any) -> dict[str, Any]:
        if isinstance(found, (bytes, bytearray, memoryview)):
            parts.append(bytes(found))
            return {_KEY: [_BYTES, len(parts[-1])]}
        if isinstance(found, np.ndarray) and found.dtype.kind in _KINDS:
            parts.append(np.ascontiguousarray(found).tobytes())
            return {_KEY: [found.dtype.str, *found.shape]}
        raise TypeError(f"a {type(found).__name__} has no place in a snapshot")

    document = json.dumps(value, default=reference, separators=(",", ":")).encode("ascii")
    return b"".join([_LENGTH.pack(len(document)), document, *parts])


def decode(raw: bytes) -> Any:
    """The value that ``encode`` wrote; arrays can be written to. Raises ``SnapshotError`` for
    other bytes."""
    at = 0

    def array_of(found: dict[str, Any]) -> Any:
        nonlocal at
        if _KEY not in found:
            return found
        kind, *shape = found[_KEY]
        dtype = np.dtype(np.uint8 if kind == _BYTES else kind)
        count = int(np.prod(shape, dtype=np.int64)) if shape else 1
        if dtype.kind not in _KINDS or min(shape, default=0) < 0:
            raise ValueError(f"an array of {kind} {shape}")
        first, at = at, at + count * dtype.itemsize
        if at > len(raw):
            raise ValueError(f"an array ends at byte {at} of {len(raw)}")
        if kind == _BYTES:
            return raw[first:at]
        return np.frombuffer(raw, dtype, count, first).reshape(shape).copy()

    try:
        (length,) = _LENGTH.unpack_from(raw)
        at = _LENGTH.size + length
        # the hook sees the references in the order in which the arrays were written
        return json.loads(raw[_LENGTH.size : at].decode("ascii"), object_hook=array_of)
    except (ValueError, TypeError, KeyError, RecursionError, struct.error, OverflowError) as error:
        raise SnapshotError(f"a snapshot's values cannot be read: {error!s:.200}") from error
