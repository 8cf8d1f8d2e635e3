"""Tokens of named contents, computed by hashing: equal names and positions give equal tokens."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xxhash

from scalesim.core import Int32s
from scalesim.testing.tags import mix
from scalesim.trace.trace import Content, TracePiece

VOCAB_SIZE = 32_000
_MASK = (1 << 64) - 1


def stream_key(content: Content) -> int:
    """A hash of 64 bits for a content's name; the names 1 and "1" have different hashes."""
    name = content.encode() if isinstance(content, str) else b"%d" % content
    return xxhash.xxh3_64_intdigest(name, seed=isinstance(content, str))


def tokens_of(pieces: Iterable[TracePiece], vocab_size: int) -> Int32s:
    """The tokens of ``pieces``, ``[total length]``; token ``i`` of a content is a hash of its key
    and ``i``."""
    counters = [
        np.arange(length, dtype=np.uint64) + np.uint64((stream_key(content) + start) & _MASK)
        for content, length, start in pieces
    ]
    hashed = mix(np.concatenate(counters))
    return (hashed % np.uint64(vocab_size)).astype(np.int32)


def sampling_key(output: TracePiece, prompt_len: int) -> int:
    """The sampling key that makes a stub runner generate ``output`` after ``prompt_len`` tokens."""
    return (stream_key(output.content) + output.start - prompt_len + 1) & _MASK
