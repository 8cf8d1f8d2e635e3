"""The staging ring: pinned host buffers that the host writes one after the other while the device
still reads earlier ones.

The runner uses it when it launches a step. A buffer is written again only when the device has read
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scalesim.core import Int32s
from scalesim.device.streams import Device, Event, Stream


@dataclass(slots=True)
class Staged:
    """One buffer: the same memory as a tensor and as an array, each int32 ``[capacity]``. ``fence``
    is reached when the device has read the buffer."""

    tensor: Any
    array: Int32s
    fence: Event | None = None


class StagingRing:
    """``num_buffers`` buffers of ``capacity`` int32 each. With one buffer a step and one buffer
    more than steps in flight, ``take`` never waits. ``num_waits`` counts how often ``take`` had to
    wait."""

    def __init__(self, device: Device, num_buffers: int, capacity: int) -> None:
        self.capacity = capacity
        self.num_waits = 0
        memory = [device.pinned(4 * capacity) for _ in range(num_buffers)]
        self.buffers = [Staged(raw, raw.numpy().view("int32")) for raw in memory]
        self._next = 0

    def take(self) -> Staged:
        """The next buffer, which the host may write."""
        buffer = self.buffers[self._next]
        self._next = (self._next + 1) % len(self.buffers)
        if buffer.fence is not None:
            if not buffer.fence.query():
                self.num_waits += 1
                buffer.fence.synchronize()
            buffer.fence = None
        return buffer

    def send(self, stream: Stream, buffer: Staged, to: Any, count: int) -> None:
        """Copy the first ``count`` int32 of ``buffer`` to the tensor ``to``, of 4-byte elements and
        at least as long. The host may not write the buffer before the copy has run."""
        stream.copy(to[:count], buffer.tensor.view(to.dtype)[:count])
        buffer.fence = stream.record()

    def fetch(self, stream: Stream, source: Any, count: int) -> Staged:
        """Copy the first ``count`` elements (of 4 bytes) of the tensor ``source`` to the next
        buffer. The host may read the buffer once the stream has run the copy."""
        buffer = self.take()
        stream.copy(buffer.tensor.view(source.dtype)[:count], source.view(-1)[:count])
        return buffer
