"""The block table: one row per running sequence, mapping its logical blocks to device page ids.

The host's copy, with the list of entries changed since the last launch: the runner applies that
list to its own copy on its own queue, so a step in flight keeps the table that it was launched
with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scalesim.core import Int32s

DUMMY_ROW = 0


class BlockTable:
    """``num_rows`` rows, row 0 being the dummy of padded batch entries (all page 0)."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self._free = list(range(num_rows - 1, DUMMY_ROW, -1))
        self._in_use = bytearray(num_rows)
        self._rows: list[int] = []
        self._cols: list[int] = []
        self._pages: list[int] = []

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self) -> int:
        assert self._free, f"all {self.num_rows - 1} rows of the block table are in use"
        row = self._free.pop()
        self._in_use[row] = 1
        return row

    def free(self, row: int) -> None:
        assert self._in_use[row], f"row {row} is free already"
        self._in_use[row] = 0
        self._free.append(row)

    def write(self, row: int, col: int, pages: Sequence[int]) -> None:
        """Blocks ``col …`` of ``row`` now lie in ``pages``."""
        count = len(pages)
        self._rows.extend([row] * count)
        self._cols.extend(range(col, col + count))
        self._pages.extend(pages)

    def take_changes(self) -> tuple[Int32s, Int32s, Int32s]:
        """Rows, columns and pages written since the last call, in order (a later entry wins)."""
        changes = (
            np.array(self._rows, np.int32),
            np.array(self._cols, np.int32),
            np.array(self._pages, np.int32),
        )
        self._rows, self._cols, self._pages = [], [], []
        return changes
