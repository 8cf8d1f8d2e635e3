"""The prefix tree: segments by content. Structure only: matching, splitting, merging, inserting,
removing.

A child is found by the exact tokens of its first block, so a hit never rests on a hash. Roots
separate kinds of state: the KV of text, and each kind of attachment. Which pages come and go is not
the tree's business.
"""

from __future__ import annotations

from collections.abc import Iterator

from scalesim.core import AgentId
from scalesim.memory.tree.segment import TOKEN_BYTES, Branch, Segment

TEXT = "text"
"""The root of prompts and what was said after them."""


class PrefixTree:
    """Segments of ``block_size`` tokens a block; token strings are little-endian int32
    ``bytes``."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.block_bytes = block_size * TOKEN_BYTES
        self.num_segments = 0
        self.num_edits = 0  # splits, merges, removals, cuts: what was read before may not hold
        self._roots: dict[str, Segment] = {}
        self._seq = 0

    def root(self, kind: str) -> Segment:
        root = self._roots.get(kind)
        if root is None:
            root = self._roots[kind] = Segment(None, b"", 0, self._next_seq())
        return root

    def __iter__(self) -> Iterator[Segment]:
        """Every segment but the roots, parents before children."""
        stack = list(self._roots.values())
        while stack:
            segment = stack.pop()
            if not segment.is_root:
                yield segment
            stack.extend(segment.children.values())
            stack.extend(segment.tails.values())

    def match(
        self, root: Segment, tokens: bytes, max_blocks: int, branch: Branch | None = None
    ) -> list[tuple[Segment, int]]:
        """The longest path whose tokens begin ``tokens``: segments with how many of their blocks
        match.

        At most ``max_blocks`` in all; only the last segment may match in part. Changes nothing.
        From the block of ``branch`` on, only what was computed with its attachment matches.
        """
        path: list[tuple[Segment, int]] = []
        node, start = root, 0
        while start < max_blocks:
            child = node.children.get(self.key(tokens, start, branch))
            if child is None:
                break
            count = self.common_blocks(child, tokens, start, until(start, max_blocks, branch))
            path.append((child, count))
            if count < child.num_blocks:
                break
            node, start = child, start + count
        return path

    def key(self, tokens: bytes, block: int, branch: Branch | None) -> bytes:
        """What a child that begins with this block of ``tokens`` is found by."""
        offset = block * self.block_bytes
        first = tokens[offset : offset + self.block_bytes]
        return first + branch.mark if branch is not None and branch.block == block else first

    def common_blocks(self, segment: Segment, tokens: bytes, start: int, limit: int) -> int:
        """Leading blocks of ``segment`` equal to ``tokens`` from block ``start`` on, at most
        ``limit``."""
        size = self.block_bytes
        offset = start * size
        low, high = 0, min(limit, segment.num_blocks)
        if segment.tokens[: high * size] == tokens[offset : offset + high * size]:
            return high
        while low < high - 1:  # blocks below low are equal, the one at high - 1 or before is not
            middle = (low + high) // 2
            if (
                segment.tokens[low * size : middle * size]
                == tokens[offset + low * size : offset + middle * size]
            ):
                low = middle
            else:
                high = middle
        return low

    def insert(self, parent: Segment, tokens: bytes, mark: bytes = b"") -> Segment:
        """A new child of whole blocks; the caller has made sure that none begins with the same
        block and mark."""
        count = len(tokens) // self.block_bytes
        child = Segment(parent, tokens, count, self._next_seq(), mark=mark)
        key = self._key(child)
        assert key not in parent.children and child.num_blocks > 0
        parent.adopt(child, key)
        self.num_segments += 1
        return child

    def insert_attachment(self, root: Segment, digest: bytes) -> Segment:
        """A child of ``root`` without tokens, found by ``digest``."""
        child = Segment(root, b"", 0, self._next_seq(), mark=digest)
        assert digest not in root.children
        root.adopt(child, digest)
        self.num_segments += 1
        return child

    def insert_tail(
        self, parent: Segment, tokens: bytes, agent: AgentId, mark: bytes = b""
    ) -> Segment:
        """A partial block of ``agent`` under ``parent``."""
        assert 0 < len(tokens) < self.block_bytes
        tail = Segment(parent, tokens, 1, self._next_seq(), mark=mark)
        parent.adopt_tail(tail, agent)
        self.num_segments += 1
        return tail

    def split(self, segment: Segment, count: int) -> Segment:
        """Cut after ``count`` blocks; returns the new upper part. ``segment`` stays the lower part,
        so that whoever holds it still holds the end of the same path. Legal at any time: pins and
        owners are copied, pages and copies in flight are divided."""
        parent = segment.parent
        assert parent is not None, segment
        self.num_edits += 1
        upper = segment.divide(count, self.block_bytes, self._next_seq())
        parent.adopt(upper, self._key(upper))
        upper.adopt(segment, self._key(segment))
        self.num_segments += 1
        return upper

    def merge(self, upper: Segment) -> Segment | None:
        """Join ``upper`` with its only child where nothing tells them apart; returns the joined
        segment (the child), or ``None`` where they must stay two."""
        if upper.is_root or upper.tails or len(upper.children) != 1:
            return None
        (lower,) = upper.children.values()
        if (
            upper.pins
            or lower.pins
            or upper.is_moving
            or lower.is_moving
            or lower.mark
            or upper.owners.keys() != lower.owners.keys()
            or (upper.uses > 0) != (lower.uses > 0)
            or (lower.device and upper.device.valid < upper.num_blocks)
            or (lower.host and upper.host.valid < upper.num_blocks)
        ):
            return None
        parent = upper.parent
        assert parent is not None
        self.num_edits += 1
        parent.adopt(lower, self._key(upper))
        lower.join(upper)
        for owner in lower.owners:
            owner.path_joined(upper, lower)
        self.num_segments -= 1
        return lower

    def remove(self, segment: Segment) -> Segment:
        """Take a segment without pages out of the tree; returns its parent, where the paths of its
        owners now end: they branch off there, so it was used more than once."""
        self.num_edits += 1
        parent = segment.leave(self._key(segment))
        for owner in segment.owners:
            owner.path_cut(segment, parent)
        self.num_segments -= 1
        return parent

    def shorten(self, segment: Segment, count: int) -> None:
        """Forget the blocks from ``count`` on, which hold no pages and have nothing below them."""
        self.num_edits += 1
        segment.shorten(count, self.block_bytes)

    def _key(self, segment: Segment) -> bytes:
        return segment.tokens[: self.block_bytes] + segment.mark

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq


def until(start: int, end: int, branch: Branch | None) -> int:
    """Blocks from ``start`` on, before ``end``, that the branch does not part from each other."""
    if branch is None or start >= branch.block:
        return end - start
    return min(end, branch.block) - start
