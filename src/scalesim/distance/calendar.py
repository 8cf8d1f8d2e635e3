"""A calendar queue of (row, due time) entries.

Buckets are wider the farther off their time is. When a bucket begins, its entries that are not yet
due move to narrower buckets. So taking the due entries costs in proportion to these, not to all
entries.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import numpy as np

from scalesim.core import Int64s
from scalesim.distance.estimates import Times

_FINE = 8.0  # a bucket's width is at most the time until its beginning divided by this
_FOREVER = 2.0**52
_FEW = 8  # up to so many entries are cheaper one by one than as arrays
_MANY = 512  # so many single entries of a bucket are packed into an array


class Calendar:
    """Entries are (row, time), times in ticks of the clock.

    A row may have several entries; nothing removes an outdated entry. The caller recognises it by
    its time, which is no longer the row's due time. ``stands`` may say so of a row and a time
    before: an outdated entry is then given up when it would move, or is still given.
    """

    def __init__(self, stands: Callable[[int, float], bool] = lambda row, time: True) -> None:
        self._stands = stands
        self.num_entries = 0
        self._keys: list[float] = []
        self._buckets: dict[float, tuple[list[int], list[float], list[tuple[Int64s, Times]]]] = {}

    def put_one(self, row: int, time: float, now: float) -> None:
        """``put`` for one entry, in plain numbers."""
        width = 2.0 ** math.floor(math.log2(max(1.0, (time - now) / _FINE)))
        bucket = self._bucket(min(math.floor(time / width) * width, _FOREVER))
        bucket[0].append(row)
        bucket[1].append(time)
        self.num_entries += 1
        if len(bucket[0]) >= _MANY:
            bucket[2].append((np.array(bucket[0], np.int64), np.array(bucket[1])))
            bucket[0].clear()
            bucket[1].clear()

    def put(self, rows: Int64s, times: Times, now: float) -> None:
        """Add entries; ``rows`` and ``times`` are ``[n]``, ``now`` is the time of the clock."""
        if len(rows) <= _FEW:
            for row, time in zip(rows.tolist(), times.tolist(), strict=True):
                self.put_one(row, time, now)
            return
        width = np.exp2(np.floor(np.log2(np.maximum(1.0, (times - now) / _FINE))))
        keys = np.minimum(np.floor(times / width) * width, _FOREVER)
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order], prepend=np.nan) != 0.0)
        for start, part in zip(starts, np.split(order, starts[1:]), strict=True):
            self._bucket(float(keys[order[start]]))[2].append((rows[part], times[part]))
        self.num_entries += len(rows)

    def take(self, now: float) -> tuple[Int64s, Times]:
        """Remove and return the entries with times before ``now``, as rows ``[n]`` and times
        ``[n]``, in no order."""
        if not self._keys or self._keys[0] >= now:
            return _NO_ROWS, _NO_TIMES
        one_rows: list[int] = []
        one_times: list[float] = []
        parts: list[tuple[Int64s, Times]] = []
        while self._keys and self._keys[0] < now:  # of a bucket that begins now, nothing is due
            singles, their_times, arrays = self._buckets.pop(heapq.heappop(self._keys))
            one_rows += singles
            one_times += their_times
            parts += arrays
        if not parts and len(one_rows) <= _FEW:
            return self._take_few(one_rows, one_times, now)
        parts.append((np.array(one_rows, np.int64), np.array(one_times)))
        rows = np.concatenate([rows for rows, _ in parts])
        times = np.concatenate([times for _, times in parts])
        self.num_entries -= len(rows)
        due = times < now
        if not due.all():
            self.put(rows[~due], times[~due], now)
        return rows[due], times[due]

    def _take_few(self, rows: list[int], times: list[float], now: float) -> tuple[Int64s, Times]:
        self.num_entries -= len(rows)
        due_rows: list[int] = []
        due_times: list[float] = []
        for row, time in zip(rows, times, strict=True):
            if time < now:
                due_rows.append(row)
                due_times.append(time)
            elif self._stands(row, time):
                self.put_one(row, time, now)
        if not due_rows:
            return _NO_ROWS, _NO_TIMES
        return np.array(due_rows, np.int64), np.array(due_times)

    def _bucket(self, key: float) -> tuple[list[int], list[float], list[tuple[Int64s, Times]]]:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = ([], [], [])
            heapq.heappush(self._keys, key)
        return bucket


_NO_ROWS: Int64s = np.empty(0, np.int64)
_NO_TIMES: Times = np.empty(0)
