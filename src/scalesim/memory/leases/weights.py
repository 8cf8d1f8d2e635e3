"""Weights in the page pools: base models beside the engine's own, found by the digest of their
content.

A model's weights are read from their source, and read again after they were dropped, as adapters
are. Each of their parts lies on consecutive device pages, so that a matrix is a plain view. The
agents of a model own its weights: these are moved by the soonest next use among them, however many
there are.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalesim.core import AgentId, Bytes2D
from scalesim.errors import ModelError
from scalesim.memory.lease import AttachmentSpec
from scalesim.memory.links.link import InMemorySource, PageSource
from scalesim.memory.owners import Owners
from scalesim.memory.residency import Residency
from scalesim.memory.tree.page_runs import PageRuns
from scalesim.memory.tree.segment import Segment

WEIGHTS = "weights"  # the kind
_ROOT = "weights"


def weights_spec(digest: bytes, number: int) -> AttachmentSpec:
    """The weights of a model as an attachment of a request; ``number`` is the runner's of the
    model."""
    return AttachmentSpec(WEIGHTS, digest, number)


@dataclass(frozen=True, slots=True)
class WeightsContent:
    """A model's weights: ``runs`` are the lengths of their parts in pages, and ``source`` gives the
    pages, uint8 ``[num_pages, page_bytes]``; ``pages`` are the same, where they are read
    already."""

    digest: bytes
    runs: tuple[int, ...]
    source: PageSource
    pages: Bytes2D | None = None

    @property
    def num_pages(self) -> int:
        return sum(self.runs)


class WeightPages:
    """The weights of the models that were added: an ``AttachmentKind``."""

    def __init__(self, residency: Residency, owners: Owners) -> None:
        self._residency, self._owners = residency, owners
        self._root = residency.tree.root(_ROOT, "reread")

    def segment(self, digest: bytes) -> Segment:
        """The segment of the weights with this digest. Raises ``ModelError`` if there is none."""
        found = self._root.children.get(digest)
        if found is None:
            raise ModelError(f"no model with weights {digest.hex()} was added")
        return found

    def add(self, content: WeightsContent) -> None:
        """Add weights. Their pages go to the host pool if that has room for all of them now;
        otherwise they are read when they are needed. Adding equal content again changes nothing."""
        if content.digest in self._root.children:
            return
        segment = self._residency.tree.insert_attachment(self._root, content.digest)
        segment.read_from(content.source, content.num_pages, PageRuns(content.runs))
        if content.pages is not None:
            self._residency.start_fill(segment, InMemorySource(content.pages))
        self._residency.ranking.refresh(segment)

    def bind(self, agent: AgentId, digest: bytes | None) -> None:
        """Let ``agent`` use these weights, in place of any other; ``None``: the engine's own."""
        if digest is None:
            self._owners.detach_all(agent, self._root)
        else:
            self._owners.attach(agent, self.segment(digest))
