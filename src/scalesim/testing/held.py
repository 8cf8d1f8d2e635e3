"""The open leases of a memory world, and the batches that compute for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalesim.batch import Batch, SamplingBatch
from scalesim.batch_options import AttachmentBatch
from scalesim.core import Bytes2D
from scalesim.errors import AdapterError
from scalesim.memory.lease import ADAPTER, WEIGHTS, AttachmentSpec, Lease
from scalesim.memory.leases.block_table import BlockTable
from scalesim.memory.links.link import PageSource


@dataclass(frozen=True)
class FlakySource(PageSource):
    """The source of the pages of an adapter, of weights or of a value; reading fails while its tag
    is in ``broken``."""

    tag: int
    pages: Bytes2D
    broken: set[int]

    def read(self) -> Bytes2D:
        if self.tag in self.broken:
            raise AdapterError(f"content {self.tag} cannot be read")
        return self.pages


@dataclass(eq=False)
class OpenLease:
    """An open lease. ``tokens`` are the tokens to compute; ``launched`` of them were launched, and
    ``done`` collected soundly."""

    lease: Lease
    agent: int
    tokens: list[int]
    slot: int
    done: int
    launched: int
    use: AttachmentSpec | None = None

    @property
    def token_bytes(self) -> bytes:
        return np.array(self.tokens, np.int32).tobytes()


def batch_of(step: int, work: list[tuple[OpenLease, int, int]], table: BlockTable) -> Batch:
    """The batch of step ``step``: the tokens ``start`` to ``end`` of each lease, greedy, with the
    changes of ``table`` and the copies on write that were not launched yet."""
    counts = [end - start for _, start, end in work]
    copies = []
    for lease, _, _ in work:
        copies += lease.lease.take_copies()
    rows, cols, pages = table.take_changes()
    num = len(work)
    return Batch(
        step=step,
        token_ids=np.concatenate([np.array(h.tokens[a:b], np.int32) for h, a, b in work]),
        positions=np.concatenate([np.arange(a, b, dtype=np.int32) for _, a, b in work]),
        query_start=np.cumsum([0, *counts]).astype(np.int32),
        rows=np.array([lease.lease.row for lease, _, _ in work], np.int32),
        slots=np.array([lease.slot for lease, _, _ in work], np.int32),
        sample=np.ones(num, np.bool_),
        sampling=SamplingBatch(
            np.zeros(num, np.float32),
            np.zeros(num, np.int32),
            np.ones(num, np.float32),
            np.zeros(num, np.uint64),
        ),
        table_rows=rows,
        table_cols=cols,
        table_pages=pages,
        page_copies=np.array(copies, np.int32).reshape(-1, 2),
        adapters=_attached([lease for lease, _, _ in work], ADAPTER),
        weights=_attached([lease for lease, _, _ in work], WEIGHTS),
    )


def _attached(work: list[OpenLease], kind: str) -> AttachmentBatch | None:
    """What the leases use of attachments of ``kind``."""
    columns = np.array(
        [
            (attached[0].row, lease.use.layout, lease.use.start)
            if lease.use is not None and lease.use.kind == kind
            else (0, 0, 0)
            for lease in work
            for attached in [lease.lease.attachments]
        ],
        np.int32,
    )
    return AttachmentBatch(*columns.T) if columns[:, 0].any() else None
