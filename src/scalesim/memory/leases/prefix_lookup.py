"""The prefix lookup: how much of a prompt is cached, how much of that to use, and how many pages
the request needs.

``PrefixTree.match`` says which blocks are equal; a lookup decides which of them to use, and gives a
``PrefixMatch``. Admission calls it. A lookup is no mere query: it may split segments, so that the
part that a request uses is a segment of its own. It pins and moves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from scalesim.memory.lease import AttachmentSpec
from scalesim.memory.leases.attachments import Attachments, branch_of
from scalesim.memory.leases.partial_blocks import FoundPartialBlock
from scalesim.memory.residency import Residency
from scalesim.memory.tree.prefix_tree import TEXT
from scalesim.memory.tree.segment import TOKEN_BYTES, Branch, Segment, lineage

Path: TypeAlias = list[tuple[Segment, int]]
"""Segments from a root on, each with the number of its blocks that are on the path."""


@dataclass(slots=True, eq=False)
class PrefixMatch:
    """What a request of ``num_tokens`` finds, and what it will use of that.

    ``path`` holds ``num_shared`` blocks to be shared; ``num_to_load`` of them are on the host only.
    ``cached_end`` is the end of the longer cached prefix where the path stops before it, because
    computing the remaining blocks again is sooner than loading them; else ``None``. ``attached``
    are the segments of the attachments ``specs``; ``num_attachment_pages`` of their pages are not
    on the device. ``num_new_pages`` device pages are needed: for loads, and for what the request
    computes. ``must_wait``: something must be loaded before the request can start.
    """

    root: Segment
    path: Path
    cached_end: Segment | None
    branch: Branch | None
    num_tokens: int
    num_shared: int
    num_to_load: int
    specs: Sequence[AttachmentSpec]
    attached: list[Segment]
    num_attachment_pages: int
    num_new_pages: int
    must_wait: bool
    partial: FoundPartialBlock | None = None  # behind the path; found once the path is cut


class PrefixLookup:
    """Finds prompts in the prefix tree, and the segments of their attachments. Both methods may
    split segments."""

    def __init__(self, residency: Residency, attachments: Attachments) -> None:
        self._tree, self._ranking = residency.tree, residency.ranking
        self._load_or_recompute, self._attachments = residency.load_or_recompute, attachments

    def find(
        self, tokens: bytes, num_blocks: int, specs: Sequence[AttachmentSpec], salt: bytes
    ) -> PrefixMatch:
        """What a request for ``num_blocks`` blocks in all would use. May split segments. Raises
        ``AttachmentError`` for an attachment that does not exist."""
        size = self._tree.block_size
        root = self._tree.root(TEXT)
        num_tokens = len(tokens) // TOKEN_BYTES
        branch = branch_of(specs, salt, size)
        path = _usable(self._tree.match(root, tokens, (num_tokens - 1) // size, branch))
        cached_end, num_to_load = None, _num_host_only(path)
        if num_to_load and self._load_or_recompute.num_worth_loading(num_to_load) < num_to_load:
            cached_end = self.cut(path, root)  # what is on the host only is computed again
            path, num_to_load = _on_device(cached_end), 0
        path = self._split_loading(path)
        num_shared = sum(count for _, count in path)
        must_wait = num_to_load > 0 or any(segment.device.transfer for segment, _ in path)
        attached, num_attachment_pages = self._attachments.find(specs), 0
        for segment in attached:
            num_attachment_pages += segment.num_missing
            must_wait = must_wait or segment.num_missing > 0 or segment.device.transfer is not None
        num_new_pages = num_blocks - num_shared + num_to_load + num_attachment_pages
        return PrefixMatch(
            root, path, cached_end, branch, num_tokens, num_shared, num_to_load, specs, attached,
            num_attachment_pages, num_new_pages, must_wait,
        )  # fmt: skip

    def cut(self, path: Path, root: Segment) -> Segment:
        """Split off the blocks behind ``path``, which stay evictable. Returns the segment in which
        the path ends then."""
        if not path:
            return root
        end, count = path[-1]
        return end if count == end.num_blocks else self._split(end, count)

    def _split_loading(self, path: Path) -> Path:
        """Split segments of ``path`` that a copy is loading in part, after the part. A segment can
        have one load at a time, and the request needs another for the remaining blocks."""
        parts = []
        for segment, count in path:
            num_loading = len(segment.device)  # with what is there already
            if segment.device.transfer is not None and num_loading < count:
                parts.append((self._split(segment, num_loading), num_loading))
                count -= num_loading
            parts.append((segment, count))
        return parts

    def _split(self, segment: Segment, count: int) -> Segment:
        """Split ``segment`` after ``count`` blocks; returns the upper segment."""
        upper = self._tree.split(segment, count)
        self._ranking.refresh(upper)
        self._ranking.refresh(segment)
        return upper


def _usable(path: Path) -> Path:
    """The first part of ``path``, as far as content exists on a tier."""
    usable = []
    for segment, count in path:
        num_usable = min(count, segment.num_available)
        if num_usable:
            usable.append((segment, num_usable))
        if num_usable < segment.num_blocks:
            break
    return usable


def _on_device(end: Segment) -> Path:
    """The path to ``end``, as far as its blocks are on the device or on their way there."""
    path = []
    for segment in reversed(lineage(end)):
        if segment.device:
            path.append((segment, len(segment.device)))
        if len(segment.device) < segment.num_blocks:
            break
    return path


def _num_host_only(path: Path) -> int:
    """The number of blocks of ``path`` that are on the host only."""
    return sum(max(0, count - len(segment.device)) for segment, count in path)
