"""The block table: a row of device page ids for each running sequence and each attachment in use.

This is the host's copy, with a list of the entries that were changed since the last launch. The
runner applies the list to its own copy on its own queue, so a step under way keeps the table with
which it was launched.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scalesim.core import Int32s

DUMMY_ROW = 0


class BlockTable:
    """``num_rows`` rows. Row 0 is the dummy of padded batch entries: all its entries are page 0."""

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
        """Take a free row. There is always one: the scheduler has no more slots than rows."""
        assert self._free, f"all {self.num_rows - 1} rows of the block table are in use"
        row = self._free.pop()
        self._in_use[row] = 1
        return row

    def free(self, row: int) -> None:
        assert self._in_use[row], f"row {row} is free already"
        self._in_use[row] = 0
        self._free.append(row)

    def write(self, row: int, col: int, pages: Sequence[int]) -> None:
        """Set the entries of ``row`` from block ``col`` on to ``pages``."""
        count = len(pages)
        self._rows.extend([row] * count)
        self._cols.extend(range(col, col + count))
        self._pages.extend(pages)

    def take_changes(self) -> tuple[Int32s, Int32s, Int32s]:
        """The rows, columns and pages written since the last call, each ``[n]`` int32, in order: a
        later entry replaces an earlier one."""
        changes = (
            np.array(self._rows, np.int32),
            np.array(self._cols, np.int32),
            np.array(self._pages, np.int32),
        )
        self._rows, self._cols, self._pages = [], [], []
        return changes
