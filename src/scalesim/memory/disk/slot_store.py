"""The slot store protocol: where the pages of the disk tier lie.

``SlotFiles`` keeps them in a folder, ``SlotObjects`` in an object store. A slot holds one page.
What is in the slots counts for this process alone: a store is empty when it is made, and removes
what it wrote when it is closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import xxhash

from scalesim.core import Bytes2D
from scalesim.memory.links.link import LinkError


class BadSlotError(LinkError):
    """The content of a slot is not what was written to it, or is no longer there."""


class SlotStore(Protocol):
    """Slots of one page each. ``where`` names the store to users. After an error of the system, a
    direction rests ``retry_s`` seconds. One thread may read while another one writes, and any
    others copy."""

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

    def checksums(self, slots: Sequence[int]) -> list[int]:
        """The checksums of what was last written to ``slots``."""
        ...

    def copy(self, slots: Sequence[int], checksums: Sequence[int]) -> tuple[Bytes2D, list[bool]]:
        """What is in ``slots`` now, uint8 ``[n, page_bytes]``, and which of it can be read and has
        the checksum asked for: a slot may have been written again since."""
        ...

    def close(self) -> None:
        """Remove what was written."""
        ...


def checksum(page: memoryview | bytes) -> int:
    """The xxh3-64 of a page."""
    return xxhash.xxh3_64_intdigest(page)
