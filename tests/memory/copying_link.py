"""A link in virtual time that copies bytes at the moment a chunk ends."""

from __future__ import annotations

from scalesim.core import Bytes2D
from scalesim.memory.links.link import Copies
from scalesim.memory.links.virtual_link import VirtualLink


class CopyingLink(VirtualLink):
    """A virtual link between two pools ``[num_pages, page_bytes]``."""

    def __init__(self, device: Bytes2D, host: Bytes2D, bytes_per_s: float) -> None:
        super().__init__(device.shape[1], bytes_per_s)
        self._pools = {"in": device, "out": host}

    def copy(self, copies: Copies) -> None:
        """Copy from the source, or from the other pool."""
        pages = {"in": list(copies.device_pages), "out": list(copies.host_pages)}
        to, other = copies.direction, "out" if copies.direction == "in" else "in"
        if copies.source is not None:
            rows = copies.source.read()[copies.first : copies.first + copies.num_pages]
        else:
            rows = self._pools[other][pages[other]]
        self._pools[to][pages[to]] = rows
