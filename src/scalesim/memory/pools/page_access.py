"""Page access: whole pages read and written directly, beside the links, while nothing runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from scalesim.core import Bytes2D

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
        """Copy device pages to other device pages, pairwise, behind all steps that were launched;
        returns when that is done."""
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
    host pool in the system's memory. Reads and writes wait for the device."""

    def __init__(self, device: Any, host: Bytes2D) -> None:
        self.host = host
        self._device, self._host = device, ArrayPages(host, host)

    def read(self, place: PoolName, pages: Sequence[int]) -> Bytes2D:
        if place == "host":
            return self._host.read(place, pages)
        found: Bytes2D = self.read_there(pages).cpu().numpy()
        return found

    def read_there(self, pages: Sequence[int]) -> Any:
        return self._device[list(pages)]

    def write(self, place: PoolName, pages: Sequence[int], rows: Bytes2D) -> None:
        if place == "host":
            self._host.write(place, pages, rows)
        elif len(pages):
            self._device[list(pages)] = self._device.new_tensor(rows)
            self._device[pages[-1], 0].item()  # written once this is read

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self._device[list(targets)] = self._device[list(sources)]
        self._device[targets[-1], 0].item()
