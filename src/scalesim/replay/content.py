"""Tokens of named streams: equal names and places give equal tokens, and nothing is stored."""

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
    """64 bits that name a stream; typed, so that 1 and "1" are two."""
    name = content.encode() if isinstance(content, str) else b"%d" % content
    return xxhash.xxh3_64_intdigest(name, seed=isinstance(content, str))


def tokens_of(pieces: Iterable[TracePiece], vocab_size: int) -> Int32s:
    """``[total length]``: token ``i`` of a stream is a hash of its key and ``i``."""
    counters = [
        np.arange(length, dtype=np.uint64) + np.uint64((stream_key(content) + start) & _MASK)
        for content, length, start in pieces
    ]
    hashed = mix(np.concatenate(counters))
    return (hashed % np.uint64(vocab_size)).astype(np.int32)


def sampling_key(output: TracePiece, prompt_len: int) -> int:
    """The key under which a stub runner's draws after ``prompt_len`` tokens are ``output``."""
    return (stream_key(output.content) + output.start - prompt_len + 1) & _MASK
