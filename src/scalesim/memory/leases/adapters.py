"""Adapters in the page pools: attachments found by the digest of their content.

The pages of an adapter are read from its source, and read again after they were dropped. The agents
that use an adapter own its segment, so the adapter is evicted and prefetched by their next uses; a
lease pins the adapter as an attachment. Runs on the engine's thread. This file knows bytes, not
weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalesim.core import AgentId, Bytes2D
from scalesim.errors import AdapterError
from scalesim.memory.lease import AttachmentSpec
from scalesim.memory.links.link import InMemorySource, PageSource
from scalesim.memory.owners import Owners
from scalesim.memory.residency import Residency
from scalesim.memory.tree.segment import Segment

ADAPTER = "adapter"  # the kind
_ROOT = "adapters"


def adapter_spec(digest: bytes, layout: int, start: int = 0) -> AttachmentSpec:
    """An adapter as an attachment of a request, in force from token position ``start`` (0 except
    for activated adapters)."""
    return AttachmentSpec(ADAPTER, digest, layout, start)


@dataclass(frozen=True, slots=True)
class AdapterContent:
    """An adapter as it was read: ``pages``, uint8 ``[num_pages, page_bytes]``, and the ``source``
    that gives the same pages again. ``invocation_tokens`` activate the adapter; ``None``: it is
    always active."""

    digest: bytes
    layout: int
    num_pages: int
    invocation_tokens: tuple[int, ...] | None
    source: PageSource
    pages: Bytes2D | None = None


class AdapterPages:
    """The adapters that were added: an ``AttachmentKind``."""

    def __init__(self, residency: Residency, owners: Owners) -> None:
        self._residency, self._owners = residency, owners
        self._root = residency.tree.root(_ROOT, "reread")
        self._stale: dict[bytes, None] = {}  # digests of removed adapters, while they leave

    def __len__(self) -> int:
        """The number of adapters that were added and not removed."""
        return sum(segment.source is not None for segment in self._root.children.values())

    def segment(self, digest: bytes) -> Segment:
        """The segment of the adapter with this digest. Raises ``AdapterError`` if none was
        added."""
        if not self.has(digest):
            raise AdapterError(f"no adapter of content {digest.hex()} was added")
        return self._root.children[digest]

    def has(self, digest: bytes) -> bool:
        """Whether an adapter with this digest is there."""
        segment = self._root.children.get(digest)
        return segment is not None and segment.source is not None

    def add(self, content: AdapterContent) -> None:
        """Add an adapter. Its pages go to the host pool if the pool has room for all of them now;
        otherwise they are read when they are needed. Adding equal content again changes nothing."""
        tree = self._residency.tree
        segment = self._root.children.get(content.digest)
        if segment is None:
            segment = tree.insert_attachment(self._root, content.digest)
        if segment.source is None:
            segment.read_from(content.source, content.num_pages)
            if content.pages is not None and not segment.device and not segment.host:
                self._residency.start_fill(segment, InMemorySource(content.pages))
            self._residency.ranking.refresh(segment)
            self._stale.pop(content.digest, None)

    def remove(self, digest: bytes) -> None:
        """Remove an adapter, and the KV that was computed with it: no prompt asks for that KV any
        more. Their pages are freed now, or when the last lease or copy that uses them ends."""
        segment = self._root.children.get(digest)
        if segment is None:
            return
        segment.read_from(None, segment.num_blocks)
        for agent in list(segment.owners):
            self._owners.detach(agent, segment)
        self._residency.drops.drop_if_removed(segment)
        self._stale[digest] = None
        self.drop_stale()

    def drop_stale(self) -> None:
        """Drop the KV of removed adapters that no lease pins and no copy uses."""
        tree, drops = self._residency.tree, self._residency.drops
        for digest in list(self._stale):
            left = [top for top in tree.branches.of(digest) if not drops.drop_if_idle(top)]
            if not left and digest not in self._root.children:  # no lease will commit any more
                del self._stale[digest]

    def bind(self, agent: AgentId, digest: bytes | None) -> None:
        """Let ``agent`` use this adapter, in place of any other; ``None``: no adapter."""
        if digest is None:
            self._owners.detach_all(agent, self._root)
        else:
            self._owners.attach(agent, self.segment(digest))
