"""The prefix tree: cached state by the tokens that it was computed from. A radix tree whose nodes
are segments.

A child is found by the exact tokens of its first block, so a match never depends on a hash. Each
kind of state has a root of its own: each kind of attachment, and the KV of text for each number of
tokens that a page holds. This file changes structure only (match, insert, split, merge, remove);
``Residency`` moves the pages.
"""

from __future__ import annotations

from collections.abc import Iterator

from scalesim.core import AgentId
from scalesim.memory.tree.branches import Branches, child_key, num_unbranched
from scalesim.memory.tree.run import Loss
from scalesim.memory.tree.segment import Branch, Segment
from scalesim.memory.tree.walk import descendants

TEXT = "text"
"""The root of KV: prompts and the tokens generated after them."""


class PrefixTree:
    """Segments of ``block_size`` tokens a block, unless their root was made with another number.
    Token strings are little-endian int32 ``bytes``."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.num_segments = 0
        self._roots: dict[tuple[str, int], Segment] = {}
        self.branches = Branches()
        self._seq = 0

    def root(self, kind: str, loss: Loss = "recompute", block_size: int | None = None) -> Segment:
        """The root of a kind of state in blocks of ``block_size`` tokens (``None``: the tree's);
        made when it is first asked for, with this ``loss``."""
        size = self.block_size if block_size is None else block_size
        if (kind, size) not in self._roots:
            root = Segment(None, b"", 0, self._next_seq(), loss=loss, block_size=size)
            self._roots[kind, size] = root
        return self._roots[kind, size]

    def roots(self, kind: str) -> list[Segment]:
        """All roots of a kind of state."""
        return [root for (known, _), root in self._roots.items() if known == kind]

    def __iter__(self) -> Iterator[Segment]:
        """All segments without the roots, parents before children."""
        for root in [*self._roots.values()]:
            yield from descendants(root)

    def match(
        self, root: Segment, tokens: bytes, max_blocks: int, branch: Branch | None = None
    ) -> list[tuple[Segment, int]]:
        """The longest cached prefix of ``tokens``, at most ``max_blocks``: a path of (segment,
        number of matching blocks). Only the last segment may match in part. Changes nothing.

        With ``branch``, blocks from the branch on match only KV that was computed with the same
        attachment.
        """
        path: list[tuple[Segment, int]] = []
        node, start = root, 0
        while start < max_blocks:
            child = node.children.get(child_key(root, tokens, start, branch))
            if child is None:
                break
            limit = num_unbranched(start, max_blocks, branch)
            count = self.common_blocks(child, tokens, start, limit)
            path.append((child, count))
            if count < child.num_blocks:
                break
            node, start = child, start + count
        return path

    def common_blocks(self, segment: Segment, tokens: bytes, start: int, limit: int) -> int:
        """The number of leading blocks of ``segment`` that equal ``tokens`` from block ``start``
        on, at most ``limit``."""
        size = segment.block_bytes
        offset = start * size
        low, high = 0, min(limit, segment.num_blocks)
        if segment.tokens[: high * size] == tokens[offset : offset + high * size]:
            return high
        while low < high - 1:  # blocks below low are equal; one of low … high - 1 differs
            middle = (low + high) // 2
            first, end = low * size, middle * size
            if segment.tokens[first:end] == tokens[offset + first : offset + end]:
                low = middle
            else:
                high = middle
        return low

    def insert(self, parent: Segment, tokens: bytes, mark: bytes = b"") -> Segment:
        """Add a child of full blocks. No child of ``parent`` may begin with the same block and
        mark."""
        count = len(tokens) // parent.block_bytes
        child = Segment(parent, tokens, count, self._next_seq(), mark=mark)
        key = self._key(child)
        assert key not in parent.children and child.num_blocks > 0
        parent.adopt(child, key)
        self.branches.note(child)
        self.num_segments += 1
        return child

    def insert_attachment(self, root: Segment, digest: bytes, num_blocks: int = 0) -> Segment:
        """Add a child of ``root`` without tokens, found by ``digest``."""
        child = Segment(root, b"", num_blocks, self._next_seq(), mark=digest)
        assert digest not in root.children
        root.adopt(child, digest)
        self.num_segments += 1
        return child

    def insert_partial(
        self, parent: Segment, tokens: bytes, agent: AgentId, mark: bytes = b""
    ) -> Segment:
        """Add a partial block of ``agent`` under ``parent``."""
        assert 0 < len(tokens) < parent.block_bytes
        partial = Segment(parent, tokens, 1, self._next_seq(), mark=mark)
        parent.adopt_partial(partial, agent)
        self.branches.note(partial)
        self.num_segments += 1
        return partial

    def split(self, segment: Segment, count: int) -> Segment:
        """Split ``segment`` after ``count`` blocks, and return the new upper segment. ``segment``
        remains the lower one, so a lease that ends at ``segment`` still ends there. Possible at any
        time: pins and owners are copied, pages and copies under way are divided."""
        parent = segment.parent
        assert parent is not None, segment
        self.branches.forget(segment)
        upper = segment.divide(count, self._next_seq())
        self.branches.note(upper)
        parent.adopt(upper, self._key(upper))
        upper.adopt(segment, self._key(segment))
        self.num_segments += 1
        return upper

    def merge(self, upper: Segment) -> Segment | None:
        """Merge ``upper`` with its only child if both have the same owners and can move as one.
        Returns the merged segment (the child), or ``None`` if they stay two."""
        if upper.is_root or upper.partials or len(upper.children) != 1:
            return None
        (lower,) = upper.children.values()
        if (
            upper.pins
            or lower.pins
            or upper.is_moving
            or lower.is_moving
            or lower.mark
            or upper.owners.keys() != lower.owners.keys()
            or (upper.num_hits > 0) != (lower.num_hits > 0)
            or (lower.device and upper.device.valid < upper.num_blocks)
            or (lower.host and upper.host.valid < upper.num_blocks)
            or (upper.disk and not lower.disk)  # what is not on the disk yet is saved alone
            or (lower.disk and upper.disk.valid < upper.num_blocks)
        ):
            return None
        parent = upper.parent
        assert parent is not None
        parent.adopt(lower, self._key(upper))
        self.branches.forget(upper)
        lower.join(upper)
        self.branches.note(lower)
        for owner in lower.owners:
            owner.path_joined(upper, lower)
        self.num_segments -= 1
        return lower

    def remove(self, segment: Segment) -> Segment:
        """Remove a segment without pages, and return its parent. Paths that ended in the segment
        end at the parent."""
        self.branches.forget(segment)
        parent = segment.unlink(self._key(segment))
        for owner in segment.owners:
            owner.path_cut(segment, parent)
        self.num_segments -= 1
        return parent

    def _key(self, segment: Segment) -> bytes:
        return segment.tokens[: segment.block_bytes] + segment.mark

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq
