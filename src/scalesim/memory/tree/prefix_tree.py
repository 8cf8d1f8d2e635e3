"""The prefix tree: segments by content. Structure only: matching, splitting, merging, inserting,
removing.

A child is found by the exact tokens of its first block, so a hit never rests on a hash. Roots
separate what must not be shared (model, adapter content, sharing domain). Which pages move is the
residency's business; this class changes page lists only through the methods below, which keep the
children counts.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from scalesim.core import AgentId
from scalesim.memory.tree.segment import NO_PAGES, TOKEN_BYTES, Branch, Segment, Transfer
from scalesim.memory.tree.small_map import SmallMap


class PrefixTree:
    """Segments of ``block_size`` tokens a block; token strings are little-endian int32
    ``bytes``."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.block_bytes = block_size * TOKEN_BYTES
        self.num_segments = 0
        self.num_device_pages = 0  # of all segments
        self.num_host_pages = 0
        self.num_edits = 0  # splits, merges, removals, cuts: what was read before may not hold
        self._roots: dict[Hashable, Segment] = {}
        self._seq = 0

    def root(self, domain: Hashable) -> Segment:
        root = self._roots.get(domain)
        if root is None:
            root = self._roots[domain] = Segment(None, b"", 0, self._next_seq())
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
        From the block of ``branch`` on, only what was computed with its adapter matches.
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
        child = Segment(parent, tokens, len(tokens) // self.block_bytes, self._next_seq())
        child.mark = mark
        key = self._key(child)
        assert key not in parent.children and child.num_blocks > 0
        parent.adopt(child, key)
        self.num_segments += 1
        return child

    def insert_adapter(self, root: Segment, digest: bytes) -> Segment:
        """A child of ``root`` without tokens, found by ``digest``."""
        child = Segment(root, b"", 0, self._next_seq())
        child.mark = digest
        assert digest not in root.children
        root.adopt(child, digest)
        self.num_segments += 1
        return child

    def insert_tail(self, parent: Segment, tokens: bytes, agent: AgentId, page: int) -> Segment:
        """A partial block of ``agent`` under ``parent``, ready in device page ``page``."""
        assert agent not in parent.tails and 0 < len(tokens) < self.block_bytes
        tail = Segment(parent, tokens, 1, self._next_seq())
        tail.tail_of = agent
        parent.adopt_tail(tail, agent)
        self.num_segments += 1
        self.add_device(tail, [page])
        tail.ready = 1
        return tail

    def hand_tail(self, tail: Segment, agent: AgentId) -> None:
        """``tail`` hangs from its parent as ``agent``'s from now on."""
        parent = _above(tail)
        assert tail.tail_of is not None and agent not in parent.tails
        del parent.tails[tail.tail_of]
        tail.tail_of = agent
        parent.adopt_tail(tail, agent)

    def extend(self, segment: Segment, tokens: bytes, pages: list[int]) -> None:
        """Append whole blocks, ready in ``pages``, to a leaf that is wholly on the device."""
        assert not segment.children and not segment.tails and segment.load is None
        assert segment.ready == segment.num_blocks, segment
        segment.tokens += tokens
        segment.num_blocks += len(pages)
        self.add_device(segment, pages)
        segment.ready += len(pages)

    def split(self, segment: Segment, count: int) -> Segment:
        """Cut after ``count`` blocks; returns the new upper part. ``segment`` stays the lower part,
        so that whoever holds it still holds the end of the same path. Legal at any time: pins and
        owners are copied, pages and copies in flight are divided."""
        assert 0 < count < segment.num_blocks and segment.parent is not None, (segment, count)
        self.num_edits += 1
        cut = count * self.block_bytes
        upper = Segment(segment.parent, segment.tokens[:cut], count, self._next_seq())
        for name in ("pins", "uses", "last_use", "last_seq", "mark"):
            setattr(upper, name, getattr(segment, name))
        segment.mark = b""
        upper.owners = SmallMap(segment.owners)
        upper.load = _divide(segment.load, segment, upper, max(0, count - segment.ready))
        upper.save = _divide(segment.save, segment, upper, max(0, count - segment.saved))
        if not _holds(segment.load, segment):
            segment.load = None
        if not _holds(segment.save, segment):
            segment.save = None
        upper.device = segment.device[:count] or NO_PAGES
        segment.device = segment.device[count:] or NO_PAGES
        upper.host, segment.host = segment.host[:count], segment.host[count:]
        upper.ready, segment.ready = min(segment.ready, count), max(0, segment.ready - count)
        upper.saved, segment.saved = min(segment.saved, count), max(0, segment.saved - count)
        upper.prefetched = min(segment.prefetched, len(upper.device))
        segment.prefetched -= upper.prefetched
        segment.tokens = segment.tokens[cut:]
        segment.num_blocks -= count
        segment.parent.children[self._key(upper)] = upper
        segment.parent = upper
        upper.adopt(segment, self._key(segment))
        upper.device_children = int(bool(segment.device))
        upper.content_children = int(bool(segment.device or segment.host))
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
            or upper.load
            or lower.load
            or upper.save
            or lower.save
            or lower.mark
            or upper.owners.keys() != lower.owners.keys()
            or (upper.uses > 0) != (lower.uses > 0)
            or (lower.device and upper.ready < upper.num_blocks)
            or (lower.host and upper.saved < upper.num_blocks)
        ):
            return None
        parent = upper.parent
        assert parent is not None
        self.num_edits += 1
        parent.children[self._key(upper)] = lower
        lower.parent, lower.mark = parent, upper.mark
        lower.tokens = upper.tokens + lower.tokens
        lower.num_blocks += upper.num_blocks
        lower.device = [*upper.device, *lower.device] or NO_PAGES
        lower.ready += upper.ready
        lower.host, lower.saved = upper.host + lower.host, upper.saved + lower.saved
        lower.prefetched += upper.prefetched
        for owner in lower.owners:
            lower.owners[owner] = max(lower.owners[owner], upper.owners[owner])
            if owner.home is upper:
                owner.home = lower
            if upper in owner.paths:
                uses = owner.paths.pop(upper)
                owner.paths[lower] = max(uses, owner.paths.get(lower, 0))
        upper.parent = None
        self.num_segments -= 1
        return lower

    def remove(self, segment: Segment) -> Segment:
        """Take a segment without pages out of the tree; returns its parent, where the paths of its
        owners now end: they branch off there, so it was used more than once."""
        parent = segment.parent
        assert parent is not None and not segment.children and not segment.tails
        assert not segment.device and not segment.host and segment.pins == 0, segment
        self.num_edits += 1
        if segment.tail_of is not None:
            del parent.tails[segment.tail_of]
        else:
            del parent.children[self._key(segment)]
        for owner in segment.owners:
            if owner.home is segment:
                owner.home = None if parent.is_root else parent
            uses = owner.paths.pop(segment, None)
            if uses is not None and not parent.is_root:
                owner.paths[parent] = max(uses, owner.paths.get(parent, 0), 1)
        segment.parent = None
        self.num_segments -= 1
        return parent

    def shorten(self, segment: Segment, count: int) -> None:
        """Forget the blocks from ``count`` on, which hold no pages and have nothing below them."""
        assert not segment.content_children and not segment.children and not segment.tails
        assert len(segment.device) <= count and len(segment.host) <= count
        self.num_edits += 1
        segment.num_blocks = count
        segment.tokens = segment.tokens[: count * self.block_bytes]

    def add_device(self, segment: Segment, pages: list[int]) -> None:
        if pages and not segment.device:
            _above(segment).device_children += 1
            if not segment.host:
                _above(segment).content_children += 1
        if segment.device:
            segment.device.extend(pages)
        elif pages:
            segment.device = list(pages)
        self.num_device_pages += len(pages)

    def add_host(self, segment: Segment, pages: list[int]) -> None:
        if pages and not segment.host and not segment.device:
            _above(segment).content_children += 1
        segment.host.extend(pages)
        self.num_host_pages += len(pages)

    def trim_device(self, segment: Segment, keep: int) -> list[int]:
        """Take back the device pages from block ``keep`` on."""
        pages = segment.device[keep:]
        if not pages:
            return pages
        segment.device = segment.device[:keep] or NO_PAGES
        self.num_device_pages -= len(pages)
        segment.ready = min(segment.ready, keep)
        if not segment.device:
            _above(segment).device_children -= 1
            if not segment.host:
                _above(segment).content_children -= 1
        return pages

    def trim_host(self, segment: Segment, keep: int) -> list[int]:
        """Take back the host pages from block ``keep`` on."""
        pages = segment.host[keep:].tolist()
        if not pages:
            return pages
        del segment.host[keep:]
        self.num_host_pages -= len(pages)
        segment.saved = min(segment.saved, keep)
        if not segment.host and not segment.device:
            _above(segment).content_children -= 1
        return pages

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


def _above(segment: Segment) -> Segment:
    """The parent, which counts its children on the device, and anywhere."""
    assert segment.parent is not None, segment
    return segment.parent


def _divide(
    transfer: Transfer | None, segment: Segment, upper: Segment, above: int
) -> Transfer | None:
    """Give the first ``above`` blocks of ``segment``'s part in ``transfer`` to ``upper``."""
    if transfer is None or above <= 0:
        return None
    index = next(i for i, (part, _) in enumerate(transfer.parts) if part is segment)
    count = transfer.parts[index][1]
    pieces = [(upper, min(above, count)), (segment, count - above)]
    transfer.parts[index : index + 1] = [piece for piece in pieces if piece[1] > 0]
    return transfer


def _holds(transfer: Transfer | None, segment: Segment) -> bool:
    return transfer is not None and any(part is segment for part, _ in transfer.parts)
