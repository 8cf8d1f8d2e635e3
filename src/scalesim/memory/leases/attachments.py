"""Attachments: state that a request needs beside its prompt's KV. An adapter is the first kind.

A lease pins the segments of its attachments with its path, loads what is missing of them with what
is missing of that, and lists their pages in rows of the block table. How the segments of a kind are
found, and what their pages hold, only the kind's own file knows: see ``adapters``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from scalesim.memory.lease import Attachment, AttachmentUse, Lease
from scalesim.memory.leases.block_table import BlockTable
from scalesim.memory.residency import Residency
from scalesim.memory.tree.segment import Branch, Segment


class AttachmentKind(Protocol):
    """One kind of state."""

    def segment(self, digest: bytes) -> Segment:
        """The segment of this content. Raises an ``AttachmentError`` where there is none."""


class Attachments:
    """The attachments of all leases. A segment has one row of the block table, however many leases
    hold it."""

    def __init__(
        self, residency: Residency, table: BlockTable, kinds: Mapping[str, AttachmentKind]
    ) -> None:
        self.kinds = dict(kinds)
        self._residency, self._table = residency, table
        self._rows: dict[Segment, tuple[int, int]] = {}  # (row, leases that hold it)

    def find(self, uses: Iterable[AttachmentUse]) -> list[Segment]:
        """Their segments. Raises ``AttachmentError``."""
        return [self.kinds[use.kind].segment(use.digest) for use in uses]

    def hold(self, lease: Lease, use: AttachmentUse, segment: Segment) -> None:
        """``lease``, which pins ``segment``, uses it: its pages are all assigned."""
        self._residency.counters.prefetch_used += segment.take_prefetched()
        row, count = self._rows.get(segment, (0, 0))
        if not count:
            row = self._table.allocate()
            self._table.write(row, 0, segment.device)
        self._rows[segment] = (row, count + 1)
        lease.attach(Attachment(use, segment, row))

    def let_go(self, segment: Segment) -> None:
        """One lease less holds ``segment``."""
        row, count = self._rows.pop(segment)
        if count > 1:
            self._rows[segment] = (row, count - 1)
        else:
            self._table.free(row)

    @property
    def num_rows(self) -> int:
        return len(self._rows)


def branch_of(uses: Sequence[AttachmentUse], salt: bytes, block_size: int) -> Branch | None:
    """Where the path of a request with these attachments, and this salt, leaves that of its tokens
    alone: with a salt, from the first block on."""
    if not uses:
        return Branch(0, _SALTED + salt) if salt else None
    (use,) = uses  # the tree tells KV apart by one mark a block
    branch = use.branch(block_size)
    if not salt:
        return branch
    place = branch.block.to_bytes(8, "little")
    return Branch(0, _SALTED + salt + place + branch.mark)


_SALTED = b"salt:"  # no digest begins so but by chance, and none has this length
