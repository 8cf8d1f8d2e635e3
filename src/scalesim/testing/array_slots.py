"""A slot store in memory, for the disk of a hostile link."""

from __future__ import annotations

from collections.abc import Sequence

from scalesim.core import Bytes2D
from scalesim.memory.disk.slot_store import checksum


class ArraySlots:
    """The slots are the rows of ``disk``, uint8 ``[num_slots, page_bytes]``, which a link writes as
    well: a slot's checksum is that of its content now."""

    where, retry_s = "an array", float("inf")

    def __init__(self, disk: Bytes2D) -> None:
        self._disk = disk

    def write(self, slots: Sequence[int], pool: Bytes2D, pages: Sequence[int]) -> None:
        self._disk[list(slots)] = pool[list(pages)]

    def read(self, slots: Sequence[int], pool: Bytes2D, pages: Sequence[int]) -> None:
        pool[list(pages)] = self._disk[list(slots)]

    def checksums(self, slots: Sequence[int]) -> list[int]:
        return [checksum(self._disk[slot].data) for slot in slots]

    def copy(self, slots: Sequence[int], checksums: Sequence[int]) -> tuple[Bytes2D, list[bool]]:
        pairs = zip(self.checksums(slots), checksums, strict=True)
        return self._disk[list(slots)], [found == asked for found, asked in pairs]

    def close(self) -> None:
        pass
