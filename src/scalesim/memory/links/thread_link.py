"""The thread link: copies between two numpy pools on threads, for engines on a CPU."""

from __future__ import annotations

from scalesim.core import Bytes2D
from scalesim.memory.links.copy_threads import CopyThreads
from scalesim.memory.links.link import Copies, Timeline

_ASSUMED_BYTES_PER_S = 4e9  # until measured


class ThreadLink(CopyThreads):
    """A ``Link`` with one thread for each direction, between two numpy pools, uint8 ``[num_pages,
    page_bytes]``.

    numpy releases the interpreter lock while it copies. ``timeline`` tells which fences of the
    compute queue were reached. ``bandwidth``: see ``CopyThreads``.
    """

    def __init__(
        self, device: Bytes2D, host: Bytes2D, timeline: Timeline, bandwidth: float | None = None
    ) -> None:
        assert device.shape[1] == host.shape[1], (device.shape, host.shape)
        self._device, self._host = device, host
        rate = _ASSUMED_BYTES_PER_S
        super().__init__(device.shape[1], {"in": rate, "out": rate}, timeline, bandwidth)

    def copy(self, copies: Copies) -> None:
        """Copy the pages of ``copies``. Called on a thread of the link."""
        for device, host, count in copies.pieces():
            on_device = self._device[device : device + count]
            on_host = self._host[host : host + count]
            if copies.direction == "in":
                on_device[:] = on_host
            else:
                on_host[:] = on_device
