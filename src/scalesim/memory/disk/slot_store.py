"""The slot store protocol: where the pages of the disk tier lie.

``SlotFiles`` keeps them in a folder, ``SlotObjects`` in an object store. A slot holds one page. What
is in the slots counts for this process alone: a store is empty when it is made, and removes what it
wrote when it is closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import xxhash

from scalesim.core import Bytes2D
from scalesim.memory.links.link import LinkError


class BadSlotError(LinkError):
    """The content of a slot is not what was written to it, or is no longer there."""


class SlotStore(Protocol):
    """Slots of one page each. One thread may read while another one writes. ``where`` names the
    store to users. After an error of the system, a direction rests ``retry_s`` seconds."""

    @property
    def where(self) -> str: ...

    @property
    def retry_s(self) -> float: ...

    def write(self, slots: Sequence[int], pool: Bytes2D, pages: Sequence[int]) -> None:
        """Write ``pages`` of ``pool`` ``[num_pages, page_bytes]`` to ``slots``, pairwise. Raises
        ``OSError``."""
        ...

    def read(self, slots: Sequence[int], pool: Bytes2D, pages: Sequence[int]) -> None:
        """Read ``slots`` into ``pages`` of ``pool`` ``[num_pages, page_bytes]``, pairwise. Raises
        ``BadSlotError`` for content that was not written there, and ``OSError`` where nothing can
        be read."""
        ...

    def close(self) -> None:
        """Remove what was written."""
        ...


def checksum(page: Bytes2D | bytes) -> np.uint64:
    """The xxh3-64 of a page."""
    return np.uint64(xxhash.xxh3_64_intdigest(page))
