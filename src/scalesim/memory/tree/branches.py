"""Branches: where KV begins that was computed with an attachment or a salt, by the attachment. When
an attachment is removed, this finds the KV that nobody asks for any more.

The mark of a branch says what its KV was computed with: an adapter's digest and offset; or, of a
request with a salt or on a model beside the engine's own, ``salt:``, ``model:`` and the digest of
the model's weights, the salt, and then the place and the mark of the adapter.
"""

from __future__ import annotations

from scalesim.memory.tree.segment import Branch, Segment

_DIGEST_BYTES, _OFFSET_BYTES = 16, 2  # at the end of a mark
_SALTED, _MODEL = b"salt:", b"model:"  # the marks of adapters have another length
_MODEL_START = len(_SALTED + _MODEL)


def salted(branch: Branch | None, salt: bytes, weights: bytes) -> Branch | None:
    """Where the path of a request branches off that would do so at ``branch``, did it not have a
    ``salt``, or the ``weights`` of another model (empty: neither): at the first block."""
    salt = (_MODEL + weights if weights else b"") + salt
    if not salt:
        return branch
    if branch is None:
        return Branch(0, _SALTED + salt)
    return Branch(0, _SALTED + salt + branch.block.to_bytes(8, "little") + branch.mark)


def child_key(parent: Segment, tokens: bytes, block: int, branch: Branch | None) -> bytes:
    """The key under ``parent`` of a child that begins with block ``block`` of ``tokens``."""
    size = parent.block_bytes
    first = tokens[block * size : (block + 1) * size]
    return first + branch.mark if branch is not None and branch.block == block else first


def num_unbranched(start: int, end: int, branch: Branch | None) -> int:
    """The number of blocks from ``start`` on, before ``end``, that lie on one side of the branch
    and so can be in one segment."""
    if branch is None or start >= branch.block:
        return end - start
    return min(end, branch.block) - start


def digest_in(mark: bytes) -> bytes:
    """The digest of the adapter in a mark. What a salted mark without an adapter has there is no
    adapter's digest."""
    return mark[-_OFFSET_BYTES - _DIGEST_BYTES : -_OFFSET_BYTES]


def weights_in(mark: bytes) -> bytes:
    """The digest of the model's weights in a mark; empty for the engine's own model."""
    if not mark.startswith(_SALTED + _MODEL):
        return b""
    return mark[_MODEL_START : _MODEL_START + _DIGEST_BYTES]


class Branches:
    """The segments of a tree that have a mark. The tree tells of each that comes or leaves."""

    def __init__(self) -> None:
        self._by_digest: dict[bytes, dict[Segment, None]] = {}  # no empty ones

    def of(self, digest: bytes) -> list[Segment]:
        """The segments at which KV begins that was computed with the attachment ``digest``."""
        return list(self._by_digest.get(digest, ()))

    def note(self, segment: Segment) -> None:
        """``segment`` has its place and its mark, if it has one."""
        for digest in _digests_in(segment.mark):
            self._by_digest.setdefault(digest, {})[segment] = None

    def forget(self, segment: Segment) -> None:
        """``segment`` leaves the tree, or gives its mark to another."""
        for digest in () if segment.is_attachment else _digests_in(segment.mark):
            del self._by_digest[digest][segment]
            if not self._by_digest[digest]:
                del self._by_digest[digest]


def _digests_in(mark: bytes) -> set[bytes]:
    return {digest for digest in (digest_in(mark), weights_in(mark)) if digest}
