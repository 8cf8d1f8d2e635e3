"""Prompts as chained block ids, as in Mooncake's and Dynamo's traces.

Equal ids mean equal prompts up to the end of the block. So each block is read as a content of its
own, named by its id.
"""

from __future__ import annotations

import xxhash

from scalesim.errors import TraceError
from scalesim.replay.content import tokens_of
from scalesim.replay.formats.rows import Row
from scalesim.trace.trace import Content, TracePiece

MAX_ID = (1 << 64) - 1
_VOCAB_SIZE = 1 << 30  # of the tokens that blocks are hashed by


def pieces_of(
    row: Row, length_name: str, ids_name: str, block_size: int, scope: str = ""
) -> tuple[TracePiece, ...]:
    """The prompt of ``row``; a prompt without ids shares nothing. Ids are equal only within the
    same ``scope``."""
    length = row.whole(length_name, 1)
    if not row.has(ids_name):
        return (TracePiece(f"{row.where} prompt", length),)
    ids = row.wholes(ids_name, 0, MAX_ID)
    blocks = -(-length // block_size)
    if len(ids) != blocks:
        raise TraceError(
            f"{row.where}: {ids_name} has {len(ids)} ids for {length_name} {length}; blocks of "
            f"{block_size} tokens make it {blocks} (--block-size names another size)"
        )
    last_length = length - (blocks - 1) * block_size
    lengths = [block_size] * (blocks - 1) + [last_length]
    names: list[Content] = [f"{scope}{id}" if scope else id for id in ids]
    return tuple(TracePiece(name, length) for name, length in zip(names, lengths, strict=True))


class Ids:
    """A numbering of blocks of tokens, in the order of their first use."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._known: dict[int, int] = {}

    def of(self, prompt: tuple[TracePiece, ...]) -> list[int]:
        """The id of each block of ``prompt``, a partial last block included."""
        tokens = tokens_of(prompt, _VOCAB_SIZE)
        ids, chain = [], 0
        for start in range(0, len(tokens), self._block_size):
            block = tokens[start : start + self._block_size].tobytes()
            chain = xxhash.xxh3_64_intdigest(block, seed=chain)
            ids.append(self._known.setdefault(chain, len(self._known)))
        return ids
