"""Branches: where KV begins that was computed with an attachment, by the attachment. When an
attachment is removed, this finds the KV that nobody asks for any more."""

from __future__ import annotations

from scalesim.memory.tree.segment import Segment

_DIGEST_BYTES, _OFFSET_BYTES = 16, 2  # at the end of a mark


def digest_in(mark: bytes) -> bytes:
    """The digest of the attachment in the mark of a ``Branch``, which ends with digest and offset.
    What a salted mark without an attachment has there is no attachment's digest."""
    return mark[-_OFFSET_BYTES - _DIGEST_BYTES : -_OFFSET_BYTES]


class Branches:
    """The segments of a tree that have a mark. The tree tells of each that comes or leaves."""

    def __init__(self) -> None:
        self._by_digest: dict[bytes, dict[Segment, None]] = {}  # no empty ones

    def of(self, digest: bytes) -> list[Segment]:
        """The segments at which KV begins that was computed with the attachment ``digest``."""
        return list(self._by_digest.get(digest, ()))

    def note(self, segment: Segment) -> None:
        """``segment`` has its place and its mark, if it has one."""
        if segment.mark:
            self._by_digest.setdefault(digest_in(segment.mark), {})[segment] = None

    def forget(self, segment: Segment) -> None:
        """``segment`` leaves the tree, or gives its mark to another."""
        if segment.mark and not segment.is_attachment:
            digest = digest_in(segment.mark)
            del self._by_digest[digest][segment]
            if not self._by_digest[digest]:
                del self._by_digest[digest]
