"""Verification of the contents of both pools against the prefix tree, for the worlds.

A segment's tokens determine the tags in its pages, on either tier; an adapter's digest determines
the bytes in its pages. All pages of a tier are compared at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from scalesim.core import Bytes2D, Int64s, UInt64s
from scalesim.memory.lease import AttachmentSpec, Lease
from scalesim.memory.tree.segment import Segment
from scalesim.memory.tree.walk import lineage
from scalesim.testing.tags import adapter_pages, are_tags_of, lineages_of, under_adapter, view_tags


class PageReader:
    """Collects the expected contents of pages of a pool, and compares them at once."""

    def __init__(self, pages: Bytes2D, block_size: int) -> None:
        self._tags, self._size = view_tags(pages, block_size), block_size
        self._parts: list[tuple[object, Int64s, Int64s, Int64s, UInt64s]] = []

    def add(
        self,
        owner: Segment | Lease,
        pages: Sequence[int],
        tokens: Int64s,
        known: UInt64s,
        start: int,
    ) -> None:
        """Expect ``tokens[start:]``, whose lineages are ``known[start:]``, in ``pages``, as far as
        both reach."""
        slots = np.arange(owner.block_size)
        count = min(len(pages) * len(slots), len(tokens) - start)
        if count > 0:
            places = (np.array(pages)[:, None] * self._size + slots).ravel()[:count]
            own = slice(start, start + count)
            self._parts.append((owner, places, tokens[own], np.arange(start, own.stop), known[own]))

    def check(self, tier: str) -> None:
        """Compare. Raises ``AssertionError`` with the first owner whose pages differ."""
        if not self._parts:
            return
        columns: list[Any] = list(zip(*(part[1:] for part in self._parts), strict=True))
        joined: list[Any] = [np.concatenate(column) for column in columns]
        if self._agree(*joined):
            return
        for owner, places, tokens, positions, known in self._parts:
            agrees = self._agree(places, tokens, positions, known)
            assert agrees, f"{tier} copy of {owner} differs from its tokens {tokens}"

    def _agree(self, places: Int64s, tokens: Int64s, positions: Int64s, known: UInt64s) -> bool:
        return are_tags_of(
            self._tags[places], tokens.astype(np.uint64), positions.astype(np.uint64), known
        )


def check_pages(segment: Segment, device: Bytes2D, host: Bytes2D) -> None:
    """Check that the pages of an adapter or of weights hold exactly that content, on both tiers."""
    want = adapter_bytes(tag_of(segment.mark), segment.num_blocks, device.shape[1])
    on_device = list(segment.device[: segment.device.valid])
    on_host = list(segment.host[: segment.host.valid])
    assert (device[on_device] == want[: len(on_device)]).all(), f"{segment} on the device"
    assert (host[on_host] == want[: len(on_host)]).all(), f"{segment} on the host"


adapter_bytes = lru_cache(maxsize=64)(adapter_pages)


class Paths:
    """The tokens from the root to the end of each segment, as tags store them, and their lineages.

    Results are cached for recent paths, because they follow from a path's tokens alone.
    """

    def __init__(self, block_size: int) -> None:
        self._size = block_size
        self._of = lru_cache(maxsize=4096)(self._compute)

    def of(self, segment: Segment) -> tuple[Int64s, UInt64s, int]:
        """Tokens and lineages ``[num_tokens]`` of the whole path, and the index at which the
        segment's own tokens begin."""
        tokens, mark, start, digest = b"", b"", 0, None
        for node in reversed(lineage(segment)):
            if node.mark:
                assert not mark, f"{segment}: two contents come into force on its path"
                mark, digest = node.mark, node.mark[-_DIGEST:]  # of a model, from the beginning
                if len(mark) == _DIGEST + 2:
                    digest, offset = mark[:-2], int.from_bytes(mark[-2:], "little")
                    assert offset < self._size, (segment, offset)
                    start = len(tokens) // 4 + offset
            tokens += node.tokens
        coded, known = self._of(tokens, digest, start)
        return coded, known, (len(tokens) - len(segment.tokens)) // 4

    def known(self, tokens: Sequence[int], use: AttachmentSpec | None) -> tuple[Int64s, UInt64s]:
        """``tokens`` as tags store them under ``use``, and their lineages."""
        packed = np.array(tokens, np.int32).tobytes()
        digest, start = (None, 0) if use is None else (use.digest, use.start)
        return self._of(packed, digest, start)

    @staticmethod
    def _compute(tokens: bytes, digest: bytes | None, start: int) -> tuple[Int64s, UInt64s]:
        plain = np.frombuffer(tokens, np.int32).astype(np.int64)
        coded = plain if digest is None else under_adapter(plain, tag_of(digest), start)
        return coded, lineages_of(coded)


_DIGEST = 16  # bytes


def digest_of(tag: int) -> bytes:
    """The digest of the adapter ``tag``, or of the weights."""
    return tag.to_bytes(_DIGEST, "little")


def tag_of(digest: bytes) -> int:
    return int.from_bytes(digest[:_DIGEST], "little")
