"""Keys of blocks: a block is found again in another generation by what it was computed from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Protocol

KEY_BYTES = 20
TOKEN_BYTES = 4  # int32


class SavedSegment(Protocol):
    """A segment as an image of memory has it. ``parent`` is an index, or -1; ``tokens`` are int32
    as bytes, ``block_size`` of them a block."""

    @property
    def parent(self) -> int: ...

    @property
    def mark(self) -> bytes: ...

    @property
    def tokens(self) -> bytes: ...

    @property
    def block_size(self) -> int: ...


class BlockKeys:
    """The keys of a snapshot's blocks.

    The key of a block is a cryptographic digest of the key above it, of the mark of an attachment
    or a salt that comes into force there, and of the block's tokens; so it stands for the whole
    path. Keys of segments are kept from one snapshot to the next.
    """

    def __init__(self, identity: str) -> None:
        self.root = blake2b(identity.encode(), digest_size=KEY_BYTES).digest()
        self._known: dict[tuple[bytes, bytes, bytes], list[bytes]] = {}
        self._used: dict[tuple[bytes, bytes, bytes], list[bytes]] = {}

    def of_image(self, segments: Iterable[SavedSegment]) -> list[list[bytes]]:
        """The keys of the blocks of ``segments``, parents before children."""
        found: list[list[bytes]] = []
        for segment in segments:
            above = self.root if segment.parent < 0 else found[segment.parent][-1]
            found.append(self.of(above, segment))
        return found

    def of(self, above: bytes, segment: SavedSegment) -> list[bytes]:
        """The keys of the blocks of ``segment``; ``above`` is the key of the block before the
        first."""
        place = above, segment.mark, segment.tokens
        keys = self._known.get(place)
        if keys is None:
            keys = list(_chain(above, segment))
        self._used[place] = keys
        return keys

    def forget_unused(self) -> None:
        """A snapshot is written: keep the keys that it asked for."""
        self._known, self._used = self._used, {}


def _chain(above: bytes, segment: SavedSegment) -> Iterator[bytes]:
    mark, tokens, size = segment.mark, segment.tokens, segment.block_size * TOKEN_BYTES
    for begin in range(0, len(tokens), size):
        state = blake2b(above, digest_size=KEY_BYTES)
        state.update(len(mark).to_bytes(4, "little") + mark)
        state.update(tokens[begin : begin + size])
        above, mark = state.digest(), b""
        yield above
