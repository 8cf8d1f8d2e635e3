"""Disk moves: spills from the host to the disk, and reads back to the host.

A block is written to the disk once, and its copy stays when the block is read back: what is on the
disk leaves the host without a copy.
"""

from __future__ import annotations

from scalesim.memory.counters import Counters
from scalesim.memory.eviction.load_or_recompute import LoadOrRecompute
from scalesim.memory.eviction.ranking import EvictionRanking
from scalesim.memory.links.link import Copies, Link
from scalesim.memory.room import Room
from scalesim.memory.tiers import Tiers
from scalesim.memory.transfers import OpenTransfers
from scalesim.memory.tree.next_use import NextUse
from scalesim.memory.tree.run import Transfer
from scalesim.memory.tree.segment import Segment


class DiskMoves:
    """Starts the copies between host and disk."""

    def __init__(
        self,
        ranking: EvictionRanking,
        tiers: Tiers,
        link: Link,
        room: Room,
        transfers: OpenTransfers,
        counters: Counters,
        load_or_recompute: LoadOrRecompute,
    ) -> None:
        self._ranking, self._host, self._disk = ranking, tiers.host, tiers.disk
        self._link, self._room, self._transfers = link, room, transfers
        self._counters, self._load_or_recompute = counters, load_or_recompute

    @property
    def is_there(self) -> bool:
        """Whether there is a disk that can be read."""
        return self._disk.pool.num_usable > 0 and self._link.rate("up") > 0.0

    @property
    def is_writable(self) -> bool:
        """Whether there is a disk that can be written. Also one that is slower than computing is:
        what is read while others compute need not be computed."""
        return self.is_there and self._link.rate("down") > 0.0

    def frees_host_soon(self, segment: Segment) -> bool:
        """Whether spills under way will make host pages free without loss, so that to wait for them
        is better than to lose what only the device has of ``segment``."""
        return self._transfers.spilling_pages > 0 and self._load_or_recompute.is_worth_waiting(
            segment.num_dirty, segment.block_size
        )

    def start_spill(self, segment: Segment) -> bool:
        """Copy the blocks of ``segment`` that are on the host alone to the disk. Returns False if
        the disk has no room for them."""
        first, count = segment.disk.valid, segment.num_unspilled
        if not self._room.to_spill(count, segment):
            return False
        pages = self._disk.pool.allocate(count)
        assert pages is not None
        transfer = Transfer("down", "spill", [(segment, count)])
        self._disk.put(segment, pages, transfer)
        self._counters.spilled_pages += count
        host = segment.host[first : first + count].tolist()
        self._transfers.submit(transfer, Copies("down", [], host, disk_pages=pages))
        self._ranking.refresh(segment)
        return True

    def start_stage(self, parts: list[tuple[Segment, int]], next_use: NextUse) -> bool:
        """Copy the next blocks of each segment from the disk to the host, ahead of ``next_use``.
        Returns False if the host has no room for them."""
        count = sum(blocks for _, blocks in parts)
        if not self._room.to_stage(count, next_use):
            return False
        self._counters.staged_pages += count
        self._read(parts, Transfer("up", "stage", list(parts)))
        return True

    def can_recall(self, count: int) -> bool:
        """Make ``count`` host pages free for a request. Returns False if that cannot be."""
        return self._room.to_recall(count)

    def start_recall(self, parts: list[tuple[Segment, int]]) -> None:
        """Copy the next blocks of each segment from the disk to the host, for a request that waits.
        ``can_recall`` has made room."""
        self._counters.recalled_pages += sum(blocks for _, blocks in parts)
        self._read(parts, Transfer("up", "recall", list(parts)))

    def _read(self, parts: list[tuple[Segment, int]], transfer: Transfer) -> None:
        """Start ``transfer``, which reads ``parts`` into free host pages."""
        host = self._host.pool.allocate(transfer.num_blocks)
        assert host is not None, (self._host.pool.num_free, transfer)
        disk: list[int] = []
        start = 0
        for segment, count in parts:
            first = len(segment.host)
            assert first + count <= segment.disk.valid, (segment, count)
            disk += segment.disk[first : first + count]
            self._host.put(segment, host[start : start + count], transfer)
            start += count
        self._transfers.submit(transfer, Copies("up", [], host, disk_pages=disk))
        for segment, _ in parts:
            self._ranking.refresh(segment)
