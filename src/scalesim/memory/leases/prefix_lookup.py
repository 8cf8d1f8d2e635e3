"""The prefix lookup: how much of a prompt is cached, how much of that to use, and how many pages
the request needs.

``PrefixTree.match`` says which blocks are equal; a lookup decides which of them to use, and gives a
``PrefixMatch``. Admission calls it. A lookup is no mere query: it may split segments, so that the
part that a request uses is a segment of its own. It pins and moves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    ``path`` holds ``num_shared`` blocks to be shared; ``num_to_load`` of them are not on the
    device, and ``num_to_recall`` of those are on the disk only.
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
    num_to_recall: int
    specs: Sequence[AttachmentSpec]
    attached: list[Segment]
    num_attachment_pages: int
    num_new_pages: int
    must_wait: bool
    partial: FoundPartialBlock | None = None  # behind the path; found once the path is cut
    lacks_host_room: bool = False  # for what is to be read from the disk


class PrefixLookup:
    """Finds prompts in the prefix tree, and the segments of their attachments. Both methods may
    split segments."""

    def __init__(self, residency: Residency, attachments: Attachments) -> None:
        self._tree, self._ranking = residency.tree, residency.ranking
        self._load_or_recompute, self._attachments = residency.load_or_recompute, attachments
        self._disk = residency.disk

    def find(
        self,
        tokens: bytes,
        num_blocks: int,
        specs: Sequence[AttachmentSpec],
        salt: bytes,
        *,
        recall: bool = True,
    ) -> PrefixMatch:
        """What a request for ``num_blocks`` blocks in all would use; without ``recall``, nothing
        that is on the disk only. May split segments. Raises ``AttachmentError`` for an attachment
        that does not exist."""
        size = self._tree.block_size
        root = self._tree.root(TEXT)
        num_tokens = len(tokens) // TOKEN_BYTES
        branch = branch_of(specs, salt, size)
        path = _usable(self._tree.match(root, tokens, (num_tokens - 1) // size, branch))
        cached_end, path = self._worth_having(path, root, recall)
        num_to_load, num_to_recall = _num_missing(path), _num_disk_only(path)
        path = self._split_moving(path)
        num_shared = sum(count for _, count in path)
        must_wait = num_to_load > 0 or any(segment.device.transfer for segment, _ in path)
        attached, num_attachment_pages = self._attachments.find(specs), 0
        for segment in attached:
            num_attachment_pages += segment.num_missing
            must_wait = must_wait or segment.num_missing > 0 or segment.device.transfer is not None
        num_new_pages = num_blocks - num_shared + num_to_load + num_attachment_pages
        return PrefixMatch(
            root, path, cached_end, branch, num_tokens, num_shared, num_to_load, num_to_recall,
            specs, attached, num_attachment_pages, num_new_pages, must_wait,
        )  # fmt: skip

    def _worth_having(self, path: Path, root: Segment, recall: bool) -> tuple[Segment | None, Path]:
        """The part of ``path`` to use, and the end of all of ``path`` if that is longer: what is
        on the disk, and then what is on the host, is left out if computing it again is sooner."""
        worth, end = self._load_or_recompute, None
        on_disk = sum(count - min(count, _reach(segment)) for segment, count in path)
        if on_disk:
            recall = recall and self._disk.is_there
            if recall and worth.is_worth_recalling(on_disk, _num_disk_only(path)):
                return None, path
            end = self.cut(path, root)
            path = _path_to(end, _reach)
        missing = _num_missing(path)
        if missing and worth.num_worth_loading(missing) < missing:
            end = end or self.cut(path, root)
            path = _path_to(end, _on_device)
        return end, path

    def cut(self, path: Path, root: Segment) -> Segment:
        """Split off the blocks behind ``path``, which stay evictable. Returns the segment in which
        the path ends then."""
        if not path:
            return root
        end, count = path[-1]
        return end if count == end.num_blocks else self._split(end, count)

    def _split_moving(self, path: Path) -> Path:
        """Split segments of ``path`` that a copy is bringing in part, after the part. A run can
        have one copy at a time, and the request needs another for the remaining blocks. What
        follows blocks that are on the device, and not on the host, is split off to be read from the
        disk: a run begins with the first block."""
        parts = []
        for segment, count in path:
            device, host = len(segment.device), len(segment.host)
            behind = max(device, host) < count  # from the disk
            cuts = set()
            if 0 < device < count and (
                segment.device.transfer is not None or (behind and host < device)
            ):
                cuts.add(device)
            if behind and host > device and segment.host.transfer is not None:
                cuts.add(host)
            done = 0
            for place in sorted(cuts):
                parts.append((self._split(segment, place - done), place - done))
                done = place
            parts.append((segment, count - done))
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


def _on_device(segment: Segment) -> int:
    """The blocks of ``segment`` that are on the device or on their way there."""
    return len(segment.device)


def _reach(segment: Segment) -> int:
    """The blocks of ``segment`` that are on the device or the host, or on their way to the
    device."""
    return max(len(segment.device), segment.host.valid)


def _path_to(end: Segment, reach: Callable[[Segment], int]) -> Path:
    """The path to ``end``, as far as ``reach`` goes in each segment."""
    path = []
    for segment in reversed(lineage(end)):
        count = reach(segment)
        if count:
            path.append((segment, count))
        if count < segment.num_blocks:
            break
    return path


def _num_missing(path: Path) -> int:
    """The number of blocks of ``path`` that are not on the device."""
    return sum(max(0, count - len(segment.device)) for segment, count in path)


def _num_disk_only(path: Path) -> int:
    """The number of blocks of ``path`` that are to be read from the disk: not even on their way to
    the host."""
    return sum(
        max(0, count - max(len(segment.device), len(segment.host))) for segment, count in path
    )
