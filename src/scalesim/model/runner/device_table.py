"""The runner's block table on the device.

The table is one fixed buffer that small scatters change in stream order, so that a step in flight
reads the table that it was launched with.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scalesim.batch import Batch
from scalesim.core import Int32s, Int64s
from scalesim.device.staging import StagingRing
from scalesim.device.streams import Device, Stream

CAPACITY = 1 << 15  # entries per buffer: 128 new sequences of 4096 tokens in 16-token blocks


class DeviceTable:
    """``entries``: ``[num_rows, max_blocks]`` int32 on the device; row 0, the dummy, stays 0.
    ``on_host`` is what they are once all changes so far have been applied."""

    def __init__(
        self,
        device: Device,
        stream: Stream,
        num_rows: int,
        max_blocks: int,
        num_buffers: int,
        capacity: int = CAPACITY,
    ) -> None:
        self.entries: Tensor = stream.zeros(num_rows, max_blocks, dtype=torch.int32)
        self.on_host: Int32s = np.zeros((num_rows, max_blocks), np.int32)
        self._stream, self._capacity = stream, capacity
        self.ring = StagingRing(device, num_buffers, 2 * capacity)
        self._arrived = stream.zeros(2 * capacity, dtype=torch.int32)

    def apply(self, batch: Batch) -> None:
        """Apply the batch's changes in stream order, behind all steps launched so far."""
        if not len(batch.table_rows):
            return
        places = batch.table_rows.astype(np.int64) * self.entries.shape[1] + batch.table_cols
        places, pages = last_of_each(places, batch.table_pages)
        self.on_host.reshape(-1)[places] = pages
        for start in range(0, len(places), self._capacity):
            stop = start + self._capacity
            self._scatter(places[start:stop].astype(np.int32), pages[start:stop])

    def _scatter(self, places: Int32s, pages: Int32s) -> None:
        count = len(places)
        buffer = self.ring.take()
        buffer.array[:count], buffer.array[count : 2 * count] = places, pages
        self.ring.send(self._stream, buffer, self._arrived, 2 * count)
        arrived = self._arrived

        def scatter() -> None:
            flat = self.entries.view(-1)
            flat.index_copy_(0, arrived[:count].long(), arrived[count : 2 * count])

        self._stream.submit(scatter)


def last_of_each(places: Int64s, values: Int32s) -> tuple[Int64s, Int32s]:
    """Distinct places, ascending, each with the last value given for it. A scatter with duplicates
    could keep any of the values."""
    unique, from_end = np.unique(places[::-1], return_index=True)
    return unique, values[len(values) - 1 - from_end]
