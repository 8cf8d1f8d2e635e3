"""Attachments: state that a request needs beside the KV of its prompt. Adapters are the first kind.

A lease pins the segments of its attachments like its path, loads what is missing of both together,
and lists the pages of attachments in rows of the block table: of what lies on consecutive pages,
the first of each run. How the segments of a kind are found,
and what their pages hold, is known only to the kind: see ``AdapterPages``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from scalesim.memory.lease import WEIGHTS, Attachment, AttachmentSpec, Lease
from scalesim.memory.leases.block_table import BlockTable
from scalesim.memory.residency import Residency
from scalesim.memory.tree.branches import salted
from scalesim.memory.tree.segment import Branch, Segment


class AttachmentKind(Protocol):
    """One kind of attachment."""

    def segment(self, digest: bytes) -> Segment:
        """The segment of the content with this digest. Raises ``AttachmentError`` if there is
        none."""


class Missing(NamedTuple):
    """What of attachments is not on the device: ``num_pages``, the places of their ``runs`` among
    these (offset, length), and whether a request has to wait for any of it."""

    num_pages: int
    runs: list[tuple[int, int]]
    must_wait: bool


def missing_of(attached: Iterable[Segment]) -> Missing:
    """What of ``attached`` has to be loaded, or is on its way."""
    num_pages, runs, must_wait = 0, list[tuple[int, int]](), False
    for segment in attached:
        if segment.runs:
            runs += ((num_pages + at, length) for at, length in segment.missing_runs)
        num_pages += segment.num_missing
        must_wait = must_wait or segment.num_missing > 0 or segment.device.transfer is not None
    return Missing(num_pages, runs, must_wait)


class Attachments:
    """The attachments of all leases. A segment has one row of the block table, shared by all leases
    that use it."""

    def __init__(
        self, residency: Residency, table: BlockTable, kinds: Mapping[str, AttachmentKind]
    ) -> None:
        self.kinds = dict(kinds)
        self._residency, self._table = residency, table
        self._rows: dict[Segment, tuple[int, int]] = {}  # (row, number of leases)

    def find(self, specs: Iterable[AttachmentSpec]) -> list[Segment]:
        """The segment of each attachment. Raises ``AttachmentError`` for one that does not
        exist."""
        return [self.kinds[spec.kind].segment(spec.digest) for spec in specs]

    def attach(self, lease: Lease, spec: AttachmentSpec, segment: Segment) -> None:
        """Add ``segment``, which is pinned and has all its pages, to the attachments of
        ``lease``."""
        self._residency.counters.prefetch_used += segment.take_prefetched()
        row, count = self._rows.get(segment, (0, 0))
        if not count:
            row = self._table.allocate()
            runs, pages = segment.runs, segment.device
            self._table.write(row, 0, runs.heads(pages) if runs else pages)
        self._rows[segment] = (row, count + 1)
        lease.attach(Attachment(spec, segment, row))

    def release(self, segment: Segment) -> None:
        """Count one lease less that uses ``segment``; the last one frees the row of the block
        table."""
        row, count = self._rows.pop(segment)
        if count > 1:
            self._rows[segment] = (row, count - 1)
        else:
            self._table.free(row)

    @property
    def num_rows(self) -> int:
        return len(self._rows)


def block_size_of(specs: Iterable[AttachmentSpec], own: int) -> int:
    """How many tokens of KV that is computed with ``specs`` a page holds: those of the model beside
    the engine's own, or ``own``."""
    return next((spec.block_size for spec in specs if spec.kind == WEIGHTS), own)


def branch_of(specs: Sequence[AttachmentSpec], salt: bytes, block_size: int) -> Branch | None:
    """Where the path of a request with these attachments and this salt branches off that of the
    same tokens without them: with a salt, or on a model beside the engine's own, at the first
    block. ``None`` with nothing of that."""
    branches = [spec.branch(block_size) for spec in specs if spec.kind != WEIGHTS]
    weights = b"".join(spec.digest for spec in specs if spec.kind == WEIGHTS)
    assert len(branches) <= 1, "the tree keeps KV apart by one mark a block"
    return salted(branches[0] if branches else None, salt, weights)
