"""Adapters in the pools: segments of pages like any other, found by the digest of their content.

An adapter's pages are read from its source, not computed: what was dropped is read again. It is
owned by the agents that use it, so it moves with their next use; a lease pins it as an attachment.
Called by the engine, on its thread. Knows bytes, not weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalesim.core import AgentId, Bytes2D
from scalesim.errors import AdapterError
from scalesim.memory.lease import AttachmentUse
from scalesim.memory.links.link import InMemorySource, PageSource
from scalesim.memory.owners import Owners
from scalesim.memory.residency import Residency
from scalesim.memory.tree.segment import Segment

ADAPTER = "adapter"  # the kind
_ROOT = "adapters"


def adapter_use(digest: bytes, layout: int, start: int = 0) -> AttachmentUse:
    """One request's adapter, in force from position ``start`` (0 but for activated adapters)."""
    return AttachmentUse(ADAPTER, digest, layout, start)


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
    """The adapters that may be asked for: an ``AttachmentKind``."""

    def __init__(self, residency: Residency, owners: Owners) -> None:
        self._residency, self._owners = residency, owners
        self._root = residency.tree.root(_ROOT)

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
            segment = tree.insert_attachment(self._root, content.digest)
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
            self._owners.detach(agent, segment)
        self._residency.settle_attachment(segment)

    def bind(self, agent: AgentId, digest: bytes) -> None:
        """``agent`` uses this adapter now, and no other."""
        self._owners.attach(agent, self.segment(digest))
