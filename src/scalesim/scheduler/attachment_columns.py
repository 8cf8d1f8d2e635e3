"""The attachments of the running sequences as columns, a row for each slot."""

from __future__ import annotations

import numpy as np

from scalesim.batch_options import AttachmentBatch
from scalesim.core import Int32s, Int64s
from scalesim.memory.lease import Lease


class AttachmentColumns:
    """Of each kind of attachment: each slot's row of the block table (0: none), its layout, and the
    first position at which it is in force."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._columns: dict[str, Int32s] = {}  # by kind, [num_slots, 3]
        self._num_attached = 0

    def enter(self, slot: int, lease: Lease) -> None:
        for use, _, row in lease.attachments:
            if use.kind not in self._columns:
                self._columns[use.kind] = np.zeros((self._num_slots, 3), np.int32)
            self._columns[use.kind][slot] = (row, use.layout, use.start)
            self._num_attached += 1

    def leave(self, slot: int) -> None:
        if self._num_attached:
            for columns in self._columns.values():
                self._num_attached -= int(columns[slot, 0] != 0)
                columns[slot] = 0

    def batch(self, kind: str, slot_ids: Int64s) -> AttachmentBatch | None:
        """The attachments of ``kind`` that the slots ``slot_ids`` have."""
        if not self._num_attached or kind not in self._columns:
            return None
        rows, layouts, starts = self._columns[kind][slot_ids].T.copy()
        return AttachmentBatch(rows, layouts, starts) if rows.any() else None
