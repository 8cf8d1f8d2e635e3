"""The prefix lookup: how much of a prompt is held, how much of that to use, and the pages it takes.

Admission calls it. A segment is split where the part that a request uses ends; nothing is pinned or
moved here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from scalesim.memory.lease import AttachmentUse
from scalesim.memory.leases.attachments import Attachments, branch_of
from scalesim.memory.leases.partial_blocks import FoundPartialBlock
from scalesim.memory.residency import Residency
from scalesim.memory.tree.prefix_tree import TEXT
from scalesim.memory.tree.segment import TOKEN_BYTES, Branch, Segment, lineage

Path: TypeAlias = list[tuple[Segment, int]]
"""Segments from a root on, each with how many of its blocks are meant."""


@dataclass(slots=True, eq=False)
class PrefixMatch:
    """What a request of ``num_tokens`` would use.

    ``missing`` of the ``num_shared`` blocks of ``path`` are on the host alone, ``unread`` pages of
    what is ``attached``, a segment for each of ``uses``, not on the device. ``num_pages`` have to
    be had: for those, and for what the request computes. ``waits``: something has to be loaded
    first. ``beyond``: the end of what is held of the prompt, where the path stops short of it, for
    the rest is computed sooner than it would be loaded.
    """

    root: Segment
    path: Path
    beyond: Segment | None
    branch: Branch | None
    num_tokens: int
    num_shared: int
    missing: int
    uses: Sequence[AttachmentUse]
    attached: list[Segment]
    unread: int
    num_pages: int
    waits: bool
    tail: FoundPartialBlock | None = None  # behind the path, once that is cut


class PrefixLookup:
    """Finds prompts in the prefix tree, and the segments of their attachments."""

    def __init__(self, residency: Residency, attachments: Attachments) -> None:
        self._tree, self._ranking = residency.tree, residency.ranking
        self._load_or_recompute, self._attachments = residency.load_or_recompute, attachments

    def find(
        self, tokens: bytes, num_blocks: int, uses: Sequence[AttachmentUse], salt: bytes
    ) -> PrefixMatch:
        """What a request for ``num_blocks`` in all would use. Raises ``AttachmentError`` where
        there is no such attachment."""
        size = self._tree.block_size
        root = self._tree.root(TEXT)
        num_tokens = len(tokens) // TOKEN_BYTES
        branch = branch_of(uses, salt, size)
        path = _usable(self._tree.match(root, tokens, (num_tokens - 1) // size, branch))
        beyond, missing = None, _missing(path)
        if (
            missing and self._load_or_recompute.num_worth_loading(missing) < missing
        ):  # sooner computed again
            beyond = self.cut(path, root)
            path, missing = _on_device(beyond), 0
        path = self._apart(path)
        num_shared = sum(count for _, count in path)
        waits = missing > 0 or any(segment.device.transfer for segment, _ in path)
        attached, unread = self._attachments.find(uses), 0
        for segment in attached:
            unread += segment.num_missing
            waits = waits or segment.num_missing > 0 or segment.device.transfer is not None
        num_pages = num_blocks - num_shared + missing + unread
        return PrefixMatch(
            root, path, beyond, branch, num_tokens, num_shared, missing, uses, attached,
            unread, num_pages, waits,
        )  # fmt: skip

    def cut(self, path: Path, root: Segment) -> Segment:
        """The end of ``path``, as a segment that ends there: what lies behind it may have to
        leave."""
        if not path:
            return root
        end, count = path[-1]
        return end if count == end.num_blocks else self._split(end, count)

    def _apart(self, path: Path) -> Path:
        """``path``, with what is on its way of a segment cut off from what else it lacks: a segment
        is under one load at a time, and a load ahead may be of a part."""
        apart = []
        for segment, count in path:
            coming = len(segment.device)
            if segment.device.transfer is not None and coming < count:
                apart.append((self._split(segment, coming), coming))
                count -= coming
            apart.append((segment, count))
        return apart

    def _split(self, segment: Segment, count: int) -> Segment:
        """The first ``count`` blocks of ``segment``, as a segment above it."""
        upper = self._tree.split(segment, count)
        self._ranking.refresh(upper)
        self._ranking.refresh(segment)
        return upper


def _usable(path: Path) -> Path:
    """``path`` as far as its content exists."""
    usable = []
    for segment, count in path:
        have = min(count, segment.num_available)
        if have:
            usable.append((segment, have))
        if have < segment.num_blocks:
            break
    return usable


def _on_device(end: Segment) -> Path:
    """The path to ``end``, as far as it is on the device or on its way there."""
    path = []
    for segment in reversed(lineage(end)):
        if segment.device:
            path.append((segment, len(segment.device)))
        if len(segment.device) < segment.num_blocks:
            break
    return path


def _missing(path: Path) -> int:
    """Blocks of ``path`` that are on the host alone."""
    return sum(max(0, count - len(segment.device)) for segment, count in path)
