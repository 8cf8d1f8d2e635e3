"""Pages of content that does not change and has a source: found by the digest of the content, read
from the source, and read again after they were dropped. Adapters and weights are such content, and
values of agents that have an origin. Runs on the engine's thread.
"""

from __future__ import annotations

from scalesim.core import AgentId, Bytes2D
from scalesim.memory.links.link import InMemorySource, PageSource
from scalesim.memory.owners import Owners
from scalesim.memory.residency import Residency
from scalesim.memory.tree.page_runs import NO_RUNS, PageRuns
from scalesim.memory.tree.segment import Segment


class SourcedPages:
    """The content below one root of the tree. The agents that use a content own its segment, so it
    is evicted and prefetched by their next uses."""

    def __init__(self, residency: Residency, owners: Owners, root: str) -> None:
        self._residency, self._owners = residency, owners
        self._root = residency.tree.root(root, "reread")

    def __len__(self) -> int:
        """The number of contents that were added and not removed."""
        return sum(segment.source is not None for segment in self._root.children.values())

    def has(self, digest: bytes) -> bool:
        """Whether content with this digest is there."""
        segment = self._root.children.get(digest)
        return segment is not None and segment.source is not None

    def put(
        self,
        digest: bytes,
        num_pages: int,
        source: PageSource,
        pages: Bytes2D | None = None,
        runs: PageRuns = NO_RUNS,
    ) -> Segment:
        """Add content of ``num_pages`` in ``runs``, and return its segment. Where its ``pages``,
        uint8 ``[num_pages, page_bytes]``, are given, they go to the host pool if the pool has room
        for all of them now; otherwise they are read when they are needed. Adding equal content
        again changes nothing."""
        segment = self._root.children.get(digest)
        if segment is None:
            segment = self._residency.tree.insert_attachment(self._root, digest)
        if segment.source is None:
            segment.read_from(source, num_pages, runs)
            if pages is not None and not segment.device and not segment.host:
                self._residency.start_fill(segment, InMemorySource(pages))
            self._residency.ranking.refresh(segment)
        return segment

    def remove(self, digest: bytes) -> None:
        """Remove content. Its pages are freed now, or when the last lease or copy that uses them
        ends."""
        segment = self._root.children.get(digest)
        if segment is None:
            return
        segment.read_from(None, segment.num_blocks)
        for agent in list(segment.owners):
            self._owners.detach(agent, segment)
        self._residency.drops.drop_if_removed(segment)


class AttachedPages(SourcedPages):
    """Content that KV is computed with, of one kind of attachment. An agent uses one at a time."""

    def __init__(self, residency: Residency, owners: Owners, root: str) -> None:
        super().__init__(residency, owners, root)
        self._stale: dict[bytes, None] = {}  # digests of removed content, while its KV leaves

    def remove(self, digest: bytes) -> None:
        """Remove content, and the KV that was computed with it: no prompt asks for that KV any
        more. Their pages are freed now, or when the last lease or copy that uses them ends."""
        if digest in self._root.children:
            super().remove(digest)
            self._stale[digest] = None
            self.drop_stale()

    def drop_stale(self) -> None:
        """Drop the KV of removed content that no lease pins and no copy uses."""
        tree, drops = self._residency.tree, self._residency.drops
        for digest in list(self._stale):
            if self.has(digest):  # it was added again
                del self._stale[digest]
                continue
            left = [top for top in tree.branches.of(digest) if not drops.drop_if_idle(top)]
            if not left and digest not in self._root.children:  # no lease will commit any more
                del self._stale[digest]

    def bind(self, agent: AgentId, digest: bytes | None) -> None:
        """Let ``agent`` use this content, in place of any other; ``None``: none. No effect if the
        content was removed."""
        if digest is None:
            self._owners.detach_all(agent, self._root)
        elif self.has(digest):
            self._owners.attach(agent, self._root.children[digest])
