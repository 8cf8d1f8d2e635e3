"""The prefix lookup: how much of a prompt is cached, how much of that to use, and how many pages
the request needs.

``PrefixTree.match`` says which blocks are equal; a lookup decides which of them to use, and gives a
``PrefixMatch``. Admission calls it. A lookup is no mere query: it may split segments, so that the
part that a request uses is a segment of its own. It pins and moves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from scalesim.memory.lease import AttachmentSpec
from scalesim.memory.leases.attachments import Attachments, block_size_of, branch_of, missing_of
from scalesim.memory.leases.paths import (
    Path,
    above_disk,
    num_disk_only,
    num_missing,
    on_device,
    path_to,
    places_to_split,
    usable,
)
from scalesim.memory.leases.prefix_match import PrefixMatch
from scalesim.memory.residency import Residency
from scalesim.memory.tree.prefix_tree import TEXT
from scalesim.memory.tree.segment import TOKEN_BYTES, Segment


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
        backlog: int,
        *,
        recall: bool = True,
    ) -> PrefixMatch:
        """What a request for ``num_blocks`` blocks in all would use, which computes behind a
        prefill of ``backlog`` tokens; without ``recall``, nothing that is on the disk only. Raises
        ``AttachmentError`` for an attachment that is not there."""
        size = block_size_of(specs, self._tree.block_size)
        root = self._tree.root(TEXT, block_size=size)
        num_tokens = len(tokens) // TOKEN_BYTES
        branch = branch_of(specs, salt, size)
        path = usable(self._tree.match(root, tokens, (num_tokens - 1) // size, branch))
        attached = self._attachments.find(specs)
        cached_end, path = self._worth_having(path, root, recall, attached, backlog)
        num_to_load, num_to_recall = num_missing(path), num_disk_only(path)
        path = self._split_moving(path)
        num_shared = sum(count for _, count in path)
        must_wait = num_to_load > 0 or any(segment.device.transfer for segment, _ in path)
        missing = missing_of(attached)
        num_new_pages = num_blocks - num_shared + num_to_load + missing.num_pages
        return PrefixMatch(
            root, path, cached_end, branch, num_tokens, num_shared, num_to_load, num_to_recall,
            specs, attached, missing.num_pages, missing.runs, num_new_pages,
            must_wait or missing.must_wait,
        )  # fmt: skip

    def _worth_having(
        self, path: Path, root: Segment, recall: bool, attached: Sequence[Segment], backlog: int
    ) -> tuple[Segment | None, Path]:
        """The part of ``path`` to use, and the end of all of ``path`` if that is longer: what is
        on the disk, and then what is on the host, is left out if computing it again is sooner. The
        request starts no sooner than ``attached`` has come, and the prefills before it are over."""
        worth, end = self._load_or_recompute, None
        to_come = sum(segment.num_blocks - segment.device.valid for segment in attached)
        needed_s = max(worth.load_s(to_come), worth.backlog_s(backlog))
        on_disk = sum(count - min(count, above_disk(segment)) for segment, count in path)
        if on_disk:
            recall = recall and self._disk.is_there
            new = num_disk_only(path)
            if recall and worth.is_worth_recalling(on_disk, new, root.block_size, needed_s):
                return None, path
            end = self.cut(path, root)
            path = path_to(end, above_disk)
        missing = num_missing(path)
        if missing and worth.num_worth_loading(missing, root.block_size, needed_s) < missing:
            end = end or self.cut(path, root)
            path = path_to(end, on_device)
        return end, path

    def cut(self, path: Path, root: Segment) -> Segment:
        """Split off the blocks behind ``path``, which stay evictable. Returns the segment in which
        the path ends then."""
        if not path:
            return root
        end, count = path[-1]
        return end if count == end.num_blocks else self._split(end, count)

    def _split_moving(self, path: Path) -> Path:
        """Split segments of ``path`` that the request needs to be moved in parts."""
        parts = []
        for segment, count in path:
            done = 0
            for place in places_to_split(segment, count):
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
