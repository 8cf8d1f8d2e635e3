"""A uniform grid over points in a plane, for neighbour queries.

The main snapshot is a sort of the points by cell, rebuilt when a tenth of the points has moved. A
moved point leaves the main snapshot for a small second one, which is rebuilt on every move. So
moving few of many points costs in proportion to the few.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from scalesim.core import Int64s

Points = npt.NDArray[np.float64]  # [n, 2]

_ASIDE = 0.1  # share of moved points above which all points are sorted again


class Grid:
    """A grid of square cells with side ``cell``. ``points`` is ``[n, 2]``, float64, finite.

    ``pairs`` finds all points nearer than one side, and some that are farther.
    """

    def __init__(self, points: Points, cell: float) -> None:
        self.points, self.cell = points, cell
        self._rebuild()

    def move(self, rows: Int64s, points: Points) -> None:
        """Move the points ``rows`` (``[k]``, distinct) to ``points`` (``[k, 2]``)."""
        self.points[rows] = points
        self._is_aside[rows] = True
        aside = np.flatnonzero(self._is_aside)
        if len(aside) > _ASIDE * len(self.points) + 64:
            self._rebuild()
        else:
            self._aside = _Snapshot(aside, _cells(self.points[aside], self.cell))

    def pairs(self, rows: Int64s) -> Iterator[tuple[Int64s, Int64s]]:
        """Pairs (row, neighbour) for all points in the nine cells around each of ``rows``, as
        arrays, in parts of three cells. A row is not its own neighbour."""
        cells = _cells(self.points[rows], self.cell)
        order = np.argsort(_keys(cells))  # neighbours one after another, for the processor's caches
        rows, cells = rows[order], cells[order]
        for dx in (-1, 0, 1):
            first, last = (_keys(cells + np.array([dx, dy])) for dy in (-1, 1))
            for snapshot in (self._main, self._aside):
                mine, others = snapshot.find(rows, first, last)
                fresh = mine != others
                if snapshot is self._main:
                    fresh &= ~self._is_aside[others]
                yield mine[fresh], others[fresh]

    def _rebuild(self) -> None:
        count = len(self.points)
        self._is_aside = np.zeros(count, np.bool_)
        self._main = _Snapshot(np.arange(count), _cells(self.points, self.cell))
        self._aside = _Snapshot(np.empty(0, np.int64), np.empty((0, 2), np.int64))


class _Snapshot:
    """Rows sorted by the key of their cell."""

    def __init__(self, rows: Int64s, cells: Int64s) -> None:
        keys = _keys(cells)
        order = np.argsort(keys, kind="stable")
        self._rows, self._keys = rows[order], keys[order]

    def find(self, rows: Int64s, first: Int64s, last: Int64s) -> tuple[Int64s, Int64s]:
        """All pairs of row i of ``rows`` with the points in the cells ``first[i]`` … ``last[i]`` of
        a column of cells; the arguments are ``[n]``."""
        start = np.searchsorted(self._keys, first, "left")
        count = np.searchsorted(self._keys, last, "right") - start
        mine = np.repeat(rows, count)
        begin = np.cumsum(count) - count
        others = self._rows[np.arange(len(mine)) - np.repeat(begin - start, count)]
        return mine, others


def _cells(points: Points, cell: float) -> Int64s:
    """The cell of each point, ``[n, 2]``; clipped, so that far-off points share a cell instead of
    overflowing the keys."""
    cells: Int64s = np.clip(np.floor(points / cell), -(2**30), 2**30).astype(np.int64)
    return cells


def _keys(cells: Int64s) -> Int64s:
    keys: Int64s = cells[:, 0] * 2**32 + cells[:, 1]
    return keys
