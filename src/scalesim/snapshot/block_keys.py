"""Keys of blocks: a block is found again in another generation by what it was computed from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Protocol

KEY_BYTES = 20
TOKEN_BYTES = 4  # int32


class SavedSegment(Protocol):
    """A segment as an image of memory has it. ``parent`` is an index, or -1; ``tokens`` are int32
    as bytes."""

    @property
    def parent(self) -> int: ...

    @property
    def mark(self) -> bytes: ...

    @property
    def tokens(self) -> bytes: ...


class BlockKeys:
    """The keys of a snapshot's blocks.

    The key of a block is a cryptographic digest of the key above it, of the mark of an attachment
    or a salt that comes into force there, and of the block's tokens; so it stands for the whole
    path. Keys of segments are kept from one snapshot to the next.
    """

    def __init__(self, identity: str, block_bytes: int) -> None:
        self.root = blake2b(identity.encode(), digest_size=KEY_BYTES).digest()
        self._block_bytes = block_bytes
        self._known: dict[tuple[bytes, bytes, bytes], list[bytes]] = {}
        self._used: dict[tuple[bytes, bytes, bytes], list[bytes]] = {}

    def of_image(self, segments: Iterable[SavedSegment]) -> list[list[bytes]]:
        """The keys of the blocks of ``segments``, parents before children."""
        found: list[list[bytes]] = []
        for segment in segments:
            above = self.root if segment.parent < 0 else found[segment.parent][-1]
            found.append(self.of(above, segment.mark, segment.tokens))
        return found

    def of(self, above: bytes, mark: bytes, tokens: bytes) -> list[bytes]:
        """The keys of a segment's blocks, whose ``tokens`` are int32 as bytes; ``above`` is the key
        of the block before the first."""
        place = above, mark, tokens
        keys = self._known.get(place)
        if keys is None:
            keys = list(self._chain(above, mark, tokens))
        self._used[place] = keys
        return keys

    def _chain(self, above: bytes, mark: bytes, tokens: bytes) -> Iterator[bytes]:
        for begin in range(0, len(tokens), self._block_bytes):
            state = blake2b(above, digest_size=KEY_BYTES)
            state.update(len(mark).to_bytes(4, "little") + mark)
            state.update(tokens[begin : begin + self._block_bytes])
            above, mark = state.digest(), b""
            yield above

    def forget_unused(self) -> None:
        """A snapshot is written: keep the keys that it asked for."""
        self._known, self._used = self._used, {}
