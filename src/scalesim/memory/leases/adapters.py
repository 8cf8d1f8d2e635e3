"""Adapters in the pools: segments of pages like any other, found by the digest of their content.

An adapter's pages are read from its source, not computed: what was dropped is read again. It is
owned by the agents that use it, so it moves with their next use; a lease pins it together with its
KV. Called by admission, releases and the engine, on the engine's thread. Knows bytes, not weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from scalesim.core import AgentId, Bytes2D
from scalesim.errors import AdapterError
from scalesim.memory.eviction.residency import Residency
from scalesim.memory.lease import Lease
from scalesim.memory.leases.block_table import BlockTable
from scalesim.memory.links.link import InMemorySource, PageSource
from scalesim.memory.prefetch.owners import Owners
from scalesim.memory.tree.segment import Branch, Segment

_ROOT = "adapters"  # no sharing domain of sequences: those are tuples or None


class AdapterUse(NamedTuple):
    """One request's adapter: its content's ``digest``, the runner's number of its ``layout``, and
    the position from which it is in force (0 but for activated adapters)."""

    digest: bytes
    layout: int
    start: int = 0

    def branch(self, block_size: int) -> Branch:
        """Where the request's path leaves the base model's."""
        block, offset = divmod(self.start, block_size)
        return Branch(block, self.digest + offset.to_bytes(2, "little"))


@dataclass(frozen=True, slots=True)
class AdapterContent:
    """An adapter as it was read: ``pages`` ``[num_pages, page_bytes]``, and the ``source`` that
    gives the same again. ``invocation_tokens`` activate it; ``None``: it always is."""

    digest: bytes
    layout: int
    num_pages: int
    invocation_tokens: tuple[int, ...] | None
    source: PageSource
    pages: Bytes2D | None = None


class AdapterPages:
    """The adapters that may be asked for. A row of the block table lists an adapter's pages while a
    lease holds it."""

    def __init__(self, residency: Residency, owners: Owners, table: BlockTable) -> None:
        self._residency, self._owners, self._table = residency, owners, table
        self._root = residency.tree.root(_ROOT)
        self._rows: dict[Segment, tuple[int, int]] = {}  # (row, leases that hold it)

    def __len__(self) -> int:
        return sum(segment.source is not None for segment in self._root.children.values())

    def segment(self, digest: bytes) -> Segment:
        """The adapter's segment. Raises ``AdapterError`` for one that was not added."""
        if not self.has(digest):
            raise AdapterError(f"no adapter of content {digest.hex()} was added")
        return self._root.children[digest]

    def has(self, digest: bytes) -> bool:
        segment = self._root.children.get(digest)
        return segment is not None and segment.source is not None

    def add(self, content: AdapterContent) -> None:
        """Know of an adapter; its pages go to the host pool if that has room for all of them now.
        Adding equal content again changes nothing."""
        tree = self._residency.tree
        segment = self._root.children.get(content.digest)
        if segment is None:
            segment = tree.insert_adapter(self._root, content.digest)
        if segment.source is None:
            segment.read_from(content.source, content.num_pages)
            if content.pages is not None and not segment.device and not segment.host:
                self._residency.start_fill(segment, InMemorySource(content.pages))
            self._residency.ranking.refresh(segment)

    def remove(self, digest: bytes) -> None:
        """Forget an adapter: its pages leave at once, or when the last lease lets go of it."""
        segment = self._root.children.get(digest)
        if segment is None:
            return
        segment.read_from(None, segment.num_blocks)
        for agent in list(segment.owners):
            self._owners.use_adapter(agent.id, None)
        self._residency.settle_adapter(segment)

    def bind(self, agent: AgentId, digest: bytes) -> None:
        """``agent`` uses this adapter now, and no other."""
        self._owners.use_adapter(agent, self.segment(digest))

    # -- a lease's hold -----------------------------------------------------------------------

    def hold(self, lease: Lease, segment: Segment) -> None:
        """``lease``, which pins ``segment``, uses it: its pages are all assigned."""
        self._residency.counters.prefetch_used += segment.take_prefetched()
        lease.use_adapter(segment, self.enter(segment))
        self.write(segment)

    def enter(self, segment: Segment) -> int:
        """The row that lists the pages of ``segment``, which are all assigned."""
        row, count = self._rows.get(segment, (0, 0))
        if not count:
            row = self._table.allocate()
        self._rows[segment] = (row, count + 1)
        return row

    def write(self, segment: Segment) -> None:
        row, count = self._rows[segment]
        if count == 1:
            self._table.write(row, 0, segment.device)

    def leave(self, segment: Segment) -> None:
        row, count = self._rows.pop(segment)
        if count > 1:
            self._rows[segment] = (row, count - 1)
        else:
            self._table.free(row)

    @property
    def num_rows(self) -> int:
        return len(self._rows)
