"""Page access: whole pages read and written directly, beside the links, while nothing runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from scalesim.core import Bytes2D
from scalesim.device.streams import Device, Event
from scalesim.memory.pools.page_pool import paired_runs

PoolName = Literal["device", "host"]


class PageAccess(Protocol):
    """Reads and writes pages of both pools, uint8 ``[n, page_bytes]``. Called between two steps, on
    the engine's thread: of valid pages that no copy writes, and of pages that nobody reads yet.
    ``host`` is the host pool, uint8 ``[num_pages, page_bytes]``."""

    @property
    def host(self) -> Bytes2D:
        """The host pool itself, uint8 ``[num_pages, page_bytes]``."""
        ...

    def read(self, place: PoolName, pages: Sequence[int]) -> Bytes2D:
        """A copy of ``pages``."""
        ...

    def read_there(self, pages: Sequence[int]) -> Any:
        """A copy of device ``pages`` that stays on the device: an array, or a tensor there."""
        ...

    def write(self, place: PoolName, pages: Sequence[int], rows: Bytes2D) -> None:
        """Write ``rows`` to ``pages``; returns when they are written."""
        ...

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy device pages to other device pages, pairwise, behind all steps that were launched.
        Whatever is given to the device afterwards, here, to a link or to a runner, finds them
        copied."""
        ...


class ArrayPages:
    """Access to two pools in the system's memory, uint8 ``[num_pages, page_bytes]`` each."""

    def __init__(self, device: Bytes2D, host: Bytes2D) -> None:
        self.host = host
        self._pools: dict[PoolName, Bytes2D] = {"device": device, "host": host}

    def read(self, place: PoolName, pages: Sequence[int]) -> Bytes2D:
        found: Bytes2D = self._pools[place][np.asarray(pages, np.int64)]
        return found

    def read_there(self, pages: Sequence[int]) -> Any:
        return self.read("device", pages)

    def write(self, place: PoolName, pages: Sequence[int], rows: Bytes2D) -> None:
        self._pools[place][np.asarray(pages, np.int64)] = rows

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self.write("device", targets, self.read("device", sources))


class TensorPages:
    """Access to a device pool that is a torch tensor, uint8 ``[num_pages, page_bytes]``, and to a
    host pool in the system's memory. Reads and writes wait for the device.

    Pages are moved in the compute stream, so that they need no fence: steps launched before are
    over by then, and steps launched later come behind. The streams of the link wait on the device.
    """

    def __init__(self, pages: Any, host: Bytes2D, device: Device) -> None:
        self.host = host
        self._pages, self._host = pages, ArrayPages(host, host)
        self._compute = device.stream("compute")
        self._links = device.stream("in"), device.stream("out")
        self._moved: Event | None = None

    def read(self, place: PoolName, pages: Sequence[int]) -> Bytes2D:
        if place == "host":
            return self._host.read(place, pages)
        found: Bytes2D = self.read_there(pages).cpu().numpy()
        return found

    def read_there(self, pages: Sequence[int]) -> Any:
        self._settle()
        return self._pages[list(pages)]

    def write(self, place: PoolName, pages: Sequence[int], rows: Bytes2D) -> None:
        if place == "host":
            self._host.write(place, pages, rows)
        elif len(pages):
            self._settle()
            self._pages[list(pages)] = self._pages.new_tensor(rows)
            self._pages[pages[-1], 0].item()  # written once this is read

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self._compute.copy_rows(self._pages, self._pages, paired_runs(targets, sources))
        self._moved = self._compute.record()
        for stream in self._links:
            stream.wait(self._moved)

    def _settle(self) -> None:
        """Wait for the newest move: reads and writes are given to no stream of the device."""
        if self._moved is not None:
            self._moved.synchronize()
            self._moved = None
