"""Pinned host buffers in a ring: what the host writes for the device, while it still reads the one
before.

Used by the runner, on its launch path. A buffer is written again only when the device has read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scalesim.core import Int32s
from scalesim.device.streams import Device, Event, Stream


@dataclass(slots=True)
class Staged:
    """One buffer: the same memory as a tensor and as an array, ``[capacity]`` int32."""

    tensor: Any
    array: Int32s
    fence: Event | None = None


class StagingRing:
    """``num_buffers`` of ``capacity`` int32 each. With steps in flight + 1 of them, one a step,
    ``take`` never waits; ``num_waits`` counts how often it had to."""

    def __init__(self, device: Device, num_buffers: int, capacity: int) -> None:
        self.capacity = capacity
        self.num_waits = 0
        memory = [device.pinned(4 * capacity) for _ in range(num_buffers)]
        self.buffers = [Staged(raw, raw.numpy().view("int32")) for raw in memory]
        self._next = 0

    def take(self) -> Staged:
        """The next buffer, to be written by the host."""
        buffer = self.buffers[self._next]
        self._next = (self._next + 1) % len(self.buffers)
        if buffer.fence is not None:
            if not buffer.fence.query():
                self.num_waits += 1
                buffer.fence.synchronize()
            buffer.fence = None
        return buffer

    def send(self, stream: Stream, buffer: Staged, to: Any, count: int) -> None:
        """Copy the first ``count`` int32 of ``buffer`` to the tensor ``to`` (int32, at least as
        long). The buffer is the device's until then."""
        stream.copy(to[:count], buffer.tensor.view(to.dtype)[:count])
        buffer.fence = stream.record()

    def fetch(self, stream: Stream, source: Any, count: int) -> Staged:
        """The next buffer, to which the first ``count`` elements (of 4 bytes) of the tensor
        ``source`` are copied; to be read when the stream has come so far."""
        buffer = self.take()
        stream.copy(buffer.tensor.view(source.dtype)[:count], source.view(-1)[:count])
        return buffer
